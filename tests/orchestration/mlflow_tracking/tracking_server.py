"""A real MLflow server in a process of its own, that can be killed and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed_autolora.orchestration.mlflow_tracking import open_run
from distributed_autolora.orchestration.mlflow_tracking.connection import connect
from distributed_autolora.records import EpochRecord

ROBUST = "val/robust_accuracy_pgd10"
RENAMED = {"val/robust_accuracy/pgd10": ROBUST, "best_val/robust_accuracy/pgd10": "val/best_robust_accuracy_pgd10"}
NOT_CHARTS = {"epoch", "next_lr", "num_workers", "halved", "restored", "stopped", "passes/forward", "passes/backward"}


def opened(uri: str, home: Path, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "uri": uri,
        "experiment": "tests",
        "run_name": "one",
        "params": {"optimization.lr": 0.01, "data.path": None},
        "tags": {"recipe": "demo"},
        "run_id": None,
        "home": home,
    }
    return open_run(**(arguments | changes))


def steps(uri: str, run_id: str, key: str = ROBUST) -> list[int]:
    return [metric.step for metric in connect(uri).get_metric_history(run_id, key)]


def assert_each_point_once(uri: str, run_id: str, history: list[EpochRecord]) -> None:
    expected = {
        (RENAMED.get(key, key), record.epoch): float(value)
        for record in history
        for key, value in record.metrics().items()
        if key not in NOT_CHARTS
    }
    seconds = np.array([record.epoch_seconds for record in history])
    sums = {
        "cost/seconds": seconds,
        "cost/worker_seconds": seconds * [record.num_workers for record in history],
        "cost/forward_passes": np.array([record.passes.forward for record in history]),
        "cost/backward_passes": np.array([record.passes.backward for record in history]),
    }
    for key, by_epoch in sums.items():
        expected |= {(key, epoch): float(total) for epoch, total in enumerate(np.cumsum(by_epoch), 1)}
    client = connect(uri)
    found = [
        (metric.key, metric.step, metric.value)
        for key in client.get_run(run_id).data.metrics
        for metric in client.get_metric_history(run_id, key)
    ]
    assert len(found) == len(expected)
    assert {(key, step): value for key, step, value in found} == pytest.approx(expected)


def free_port() -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if not 10002 <= port <= 19999:
            return port


class TrackingServer:
    """`mlflow server` on SQLite and a folder of artifacts.

    Args:
        folder: where database and artifacts go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}", "--workers", "1"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        with (self._folder / "server.log").open("ab") as log:
            # Its job runner would start eight more processes.
            environment = os.environ | {"DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
        end = time.monotonic() + 150
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            assert time.monotonic() < end, (self._folder / "server.log").read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False
