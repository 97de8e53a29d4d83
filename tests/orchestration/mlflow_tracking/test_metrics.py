"""Metrics on real stores: SQLite files and a server that is killed and started again."""

import socket
import time
from pathlib import Path

import pytest

from distributed_autolora.orchestration.mlflow_tracking import (
    MetricWriter,
    TrackingError,
    default_tracking_uri,
    finish_run,
    log_result,
)
from tests.orchestration.mlflow_tracking.tracking_server import TrackingServer, assert_each_point_once, opened
from tests.reporting import runs


def test_writing_the_same_history_twice_adds_nothing(home: Path) -> None:
    uri, history = default_tracking_uri(home), runs.history(20)
    run_id = opened(uri, home)
    writer = MetricWriter(uri, run_id)
    assert writer.write(history[:3])
    assert writer.write(history[:3])
    assert writer.write(history[:9])
    # A second writer that knows nothing goes on, with more than one batch of 1,000 metrics.
    history = runs.history(60)
    assert MetricWriter(uri, run_id).write(history)
    assert_each_point_once(uri, run_id, history)


def test_a_writer_that_starts_behind_the_run_repeats_nothing(home: Path) -> None:
    uri, history = default_tracking_uri(home), runs.history(12)
    run_id = opened(uri, home)
    assert MetricWriter(uri, run_id).write(history)
    behind = MetricWriter(uri, run_id)
    for epochs in (8, 9, 12):  # "restored_epoch" is None up to epoch 8
        assert behind.write(history[:epochs])
    assert_each_point_once(uri, run_id, history)


def test_each_step_appears_once_although_the_server_goes_away(server: TrackingServer, home: Path) -> None:
    history = runs.history(12)
    run_id = opened(server.uri, home)
    writer = MetricWriter(server.uri, run_id, retry_after_s=0.5)
    assert writer.write(history[:4])
    # Another writer gets ahead, which this one finds out when it looks after a failed write.
    assert MetricWriter(server.uri, run_id).write(history[:8])
    server.kill()
    start = time.monotonic()
    assert not writer.write(history[:9])
    assert not finish_run(server.uri, run_id, status="FAILED")
    with pytest.raises(TrackingError, match=r"is away \(connection (refused|lost)\): once it is back"):
        log_result(server.uri, run_id, runs.result(history), history, [], {})
    assert time.monotonic() - start < 15
    server.start()
    time.sleep(0.5)
    assert writer.write(history[:10])
    assert writer.write(history)
    assert_each_point_once(server.uri, run_id, history)


def test_a_silent_server_costs_a_few_seconds_and_is_then_left_alone() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        writer = MetricWriter(f"http://127.0.0.1:{silent.getsockname()[1]}", "0" * 32)
        start = time.monotonic()
        assert not writer.write(runs.history(2))
        first = time.monotonic() - start
        assert not writer.write(runs.history(3))
        assert first < 8
        assert time.monotonic() - start - first < 0.1
        with pytest.raises(TrackingError, match=r"is away \(no answer in time\)"):
            writer.send(runs.history(2))
