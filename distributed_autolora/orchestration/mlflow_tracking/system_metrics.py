"""CPU, memory, disk, network and GPU use of one node, logged while a run trains."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.mlflow_tracking.connection import (
    QUICK_S,
    connect,
    failures,
    problem_of,
    set_up_mlflow,
    timeouts,
)
from distributed_autolora.orchestration.mlflow_tracking.metrics import SYSTEM


@contextmanager
def system_metrics(uri: str, run_id: str, *, node: str | None = None, retry_after_s: float = 60.0) -> Iterator[None]:
    """Logs MLflow's system metrics of this node while the block runs, from a thread of this process.

    What the store does not take is lost. The block never fails for it; at its end it waits for some seconds at most.

    Args:
        node: comes into the names; None: the run has one node.
        retry_after_s: after a failed request, seconds in which the store is left alone.
    """
    ended = threading.Event()
    # MLflow is imported here: in the thread, its imports could meet those of the block half-way.
    set_up_mlflow()
    expected = failures(UserError)

    def log() -> None:
        warned = False
        while True:
            try:
                _log_until(ended, uri, run_id, node)
                return
            except expected as error:
                if not warned:
                    print(_warning(uri, error), file=sys.stderr, flush=True)
                warned = True
                if ended.wait(retry_after_s):
                    return

    thread = threading.Thread(target=log, name="system-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
    thread.join(2 * QUICK_S)


def _warning(uri: str, error: Exception) -> str:
    return (
        f"warning: MLflow at {uri} took no system metrics ({problem_of(error).rstrip('.')}). Training continues; they "
        "are logged again once that is fixed."
    )


def _log_until(ended: threading.Event, uri: str, run_id: str, node: str | None) -> None:
    """Logs until the end, and once more there: a short run has a point, too."""
    from mlflow.entities import Metric
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    with timeouts(QUICK_S):
        client = connect(uri)
        start_ms = client.get_run(run_id).info.start_time
        # Only its samples are used: its own thread would stop for good at the first request that fails.
        monitor = SystemMetricsMonitor(run_id, tracking_uri=uri)
    monitor.collect_metrics()  # the CPU's use is measured since the sample before
    is_last = False
    while not is_last:
        for part in monitor.monitors:
            part.clear_metrics()
        for _ in range(monitor.samples_before_logging):
            is_last = is_last or ended.wait(monitor.sampling_interval)
            monitor.collect_metrics()
        prefix, now_ms = SYSTEM + (f"{node}/" if node else ""), int(time.time() * 1000)
        step = (now_ms - start_ms) // 1000
        values = monitor.aggregate_metrics()
        with timeouts(QUICK_S):
            client.log_batch(run_id, metrics=[Metric(prefix + name, values[name], now_ms, step) for name in values])
