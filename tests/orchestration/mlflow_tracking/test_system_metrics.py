"""System metrics on a real store, and what a store that fails costs a run: they alone."""

import os
import socket
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from distributed_autolora.orchestration.mlflow_tracking import default_tracking_uri, system_metrics
from distributed_autolora.orchestration.mlflow_tracking.connection import connect
from tests.orchestration.mlflow_tracking.tracking_server import opened, steps

CPU, MEMORY = "system/cpu_utilization_percentage", "system/system_memory_usage"


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")


def wait_until(condition: Callable[[], bool]) -> None:
    """Ends with the test's own timeout."""
    while not condition():
        time.sleep(0.02)


def test_a_node_s_use_is_in_the_run_while_the_block_runs(home: Path) -> None:
    uri = default_tracking_uri(home)
    run_id = opened(uri, home)
    with system_metrics(uri, run_id):
        wait_until(lambda: len(steps(uri, run_id, CPU)) >= 3)
    values = connect(uri).get_run(run_id).data.metrics
    # The two of memory agree on what the machine has, and so does the system.
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e6
    assert values[f"{MEMORY}_megabytes"] / values[f"{MEMORY}_percentage"] == pytest.approx(installed / 100, rel=0.05)
    assert 0 <= values[CPU] <= 100
    assert steps(uri, run_id, CPU) == sorted(steps(uri, run_id, CPU))
    number = len(steps(uri, run_id, CPU))
    time.sleep(0.2)
    assert len(steps(uri, run_id, CPU)) == number, "the block is over"


def test_a_block_that_is_over_at_once_has_a_point_by_the_name_of_its_node(home: Path) -> None:
    uri = default_tracking_uri(home)
    run_id = opened(uri, home)
    with system_metrics(uri, run_id, node="node-2"):
        pass
    names = connect(uri).get_run(run_id).data.metrics
    assert CPU.replace("/", "/node-2/") in names
    assert all(name.startswith("system/node-2/") for name in names)


def test_a_store_that_fails_for_a_while_costs_the_metrics_of_that_while(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    uri = default_tracking_uri(home)
    run_id = opened(uri, home)

    def rename(old: str, new: str) -> None:
        with closing(sqlite3.connect(home / "mlflow.db", timeout=60)) as database:
            database.execute(f"ALTER TABLE {old} RENAME TO {new}")

    said = ""
    with system_metrics(uri, run_id, retry_after_s=0.05):
        wait_until(lambda: len(steps(uri, run_id, CPU)) >= 1)
        rename("metrics", "away")
        try:
            while "warning: " not in said:
                said += capfd.readouterr().err
        finally:
            rename("away", "metrics")
        number = len(steps(uri, run_id, CPU))
        wait_until(lambda: len(steps(uri, run_id, CPU)) > number)
    said += capfd.readouterr().err
    assert said.count("warning: ") == 1
    assert "took no system metrics (" in said
    assert "Training continues" in said


def test_a_server_that_does_not_answer_neither_fails_nor_holds_the_block() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RuntimeError, match="the block's own"), system_metrics(uri, "0" * 32):
            raise RuntimeError("the block's own")
