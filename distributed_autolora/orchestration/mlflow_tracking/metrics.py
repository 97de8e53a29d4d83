"""Metrics by epoch, each written exactly once."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distributed_autolora.orchestration.mlflow_tracking.connection import QUICK_S, TrackingError, connect, requests_to
from distributed_autolora.records import EpochRecord, total_cost

if TYPE_CHECKING:
    from mlflow import MlflowClient

_METRICS_PER_BATCH = 1000
SYSTEM = "system/"
"""What precedes the metrics of the hardware, which come from elsewhere."""
_NOT_CHARTS = (
    *("epoch", "next_lr", "num_workers", "val/masking_images", "halved", "restored", "stopped"),
    *("passes/forward", "passes/backward"),
)
"""Numbers that hardly ever change within a run, or repeat the line of another; files and Ray's tables have them."""


class MetricWriter:
    """Writes each metric of each epoch once, whatever was written before and by whom.

    What the run has is read on the first write and after a failed one; in between it is remembered.

    Args:
        retry_after_s: after a failed write, seconds in which the server is left alone.
    """

    def __init__(self, uri: str, run_id: str, *, retry_after_s: float = 30.0) -> None:
        self._uri, self._run_id, self._retry_after_s = uri, run_id, retry_after_s
        self._client: MlflowClient | None = None
        self._has: set[tuple[str, int]] | None = None
        self._stamps: dict[int, int] = {}
        self._retry_at = 0.0

    def write(self, history: Sequence[EpochRecord]) -> bool:
        """Writes what the run does not have yet, and tells whether it now has everything.

        It never raises for a server that is away, and then costs a few seconds at most.
        """
        if self._has is None and time.monotonic() < self._retry_at:
            return False
        try:
            self.send(history)
        except TrackingError:
            self._retry_at = time.monotonic() + self._retry_after_s
            return False
        return True

    def send(self, history: Sequence[EpochRecord]) -> None:
        """Writes what the run does not have yet, now.

        Raises:
            TrackingError: when that cannot be done.
        """
        try:
            with requests_to(self._uri, QUICK_S):
                self._write_missing(_points(history))
        except TrackingError:
            self._has, self._client = None, None
            raise

    def _write_missing(self, points: dict[tuple[str, int], float]) -> None:
        from mlflow.entities import Metric

        if self._client is None:
            self._client = connect(self._uri)
        if self._has is None:
            # All keys: one that the history lacks so far may be there from a run that came further.
            found = self._client.get_run(self._run_id).data.metrics
            logged = [key for key in found if not key.startswith(SYSTEM)]
            history = {key: self._client.get_metric_history(self._run_id, key) for key in logged}
            self._has = {(key, metric.step) for key, known in history.items() for metric in known}
        missing = [point for point in points if point not in self._has]
        # A point keeps its time over repeated attempts: MLflow drops a row that is equal in all columns, so a
        # write that the server finishes after the client gave up on it does no harm either.
        now = int(time.time() * 1000)
        metrics = [Metric(key, points[key, step], self._stamps.setdefault(step, now), step) for key, step in missing]
        for start in range(0, len(metrics), _METRICS_PER_BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + _METRICS_PER_BATCH])
        self._has |= set(missing)


def metric_name(name: str) -> str:
    """Returns the name of a metric in MLflow, which groups charts by what precedes the last slash and takes few signs.

    Accuracies on the same images are one group: "val/robust_accuracy/pgd10" is "val/robust_accuracy_pgd10" there.
    """
    for part, there in (("best_val/", "val/best_"), ("linear_head/", "linear_head_"), ("accuracy/", "accuracy_")):
        name = name.replace(part, there)
    return re.sub(r"[^\w\-. :/]", "_", name)


def _points(history: Sequence[EpochRecord]) -> dict[tuple[str, int], float]:
    points: dict[tuple[str, int], float] = {}
    for epochs, record in enumerate(history, 1):
        cost = {f"cost/{name}": number for name, number in vars(total_cost(history[:epochs])).items()}
        numbers = {key: value for key, value in record.metrics().items() if key not in _NOT_CHARTS} | cost
        points |= {(metric_name(key), record.epoch): float(value) for key, value in numbers.items()}
    return points
