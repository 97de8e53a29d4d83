"""A Ray cluster of several raylets on this machine, whose nodes can be killed and come back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.gcs_pb2 import GcsNodeInfo

from tests.hosts.raylets import FAST_HEALTH_CHECKS
from tests.orchestration.mlflow_tracking.tracking_server import free_port

_START_S = 90.0


class Nodes:
    """A head, and more nodes with one CPU each.

    Args:
        folder: for Ray's own files and logs; its path must be short.
        count: nodes beside the head.
        environment: of all their processes.
        head_cpus: CPUs of the head.
    """

    def __init__(self, folder: Path, count: int, environment: Mapping[str, str], head_cpus: int = 1) -> None:
        self._folder, self._environment, self._head_cpus = folder, dict(environment), head_cpus
        self.address = f"127.0.0.1:{free_port()}"
        self._head = self._start("head", ["--head", f"--port={self.address.partition(':')[2]}"])
        self._others = [self._head] * count
        self._wait("head", self._head)
        for number in range(count):
            # One after another: two that start at the same moment on one machine may choose the same port.
            self._join(number)
            self._wait(f"node-{number}", self._others[number])
        self._is_closing = threading.Event()
        threading.Thread(target=self._tend, daemon=True).start()

    def ids(self) -> list[str]:
        """Returns the ids of the living nodes beside the head, the oldest first."""
        found = GcsClient(address=self.address).get_all_node_info().values()
        alive = [node for node in found if node.state == GcsNodeInfo.ALIVE and not node.is_head_node]
        return [node.node_id.hex() for node in sorted(alive, key=lambda node: int(node.start_time_ms))]

    def announce_the_end(self, node_id: str, seconds: int) -> None:
        """Tells Ray, as a cloud does, that a node will be taken away in so many seconds."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", f"--address={self.address}"]
        command += [f"--node-id={node_id}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
        command += [f"--deadline-remaining-seconds={seconds}"]
        subprocess.run(command, env=self._environment, check=True, capture_output=True)

    def kill(self, number: int) -> None:
        """Kills all processes of a node; another comes in its place."""
        _kill(self._others[number])

    def close(self) -> None:
        """Ends all nodes."""
        self._is_closing.set()
        for process in (*self._others, self._head):
            _kill(process)

    def _tend(self) -> None:
        """Starts nodes that ended again, as an init system does."""
        while not self._is_closing.wait(1.0):
            for number, process in enumerate(self._others):
                if process.poll() is not None and not self._is_closing.is_set():
                    self._join(number)

    def _join(self, number: int) -> None:
        self._others[number] = self._start(f"node-{number}", [f"--address={self.address}"])

    def _start(self, name: str, role: list[str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *role]
        command += ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000"]
        is_head = "--head" in role
        command += [f"--num-cpus={self._head_cpus if is_head else 1}"]
        command += ["--include-dashboard=false", f"--temp-dir={self._folder / 'ray'}"] if is_head else []
        command += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        environment = {**self._environment, **FAST_HEALTH_CHECKS}
        environment.pop("RAY_ADDRESS", None)
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def _wait(self, name: str, process: subprocess.Popen[bytes]) -> None:
        log, deadline = self._folder / f"{name}.log", time.monotonic() + _START_S
        while "Ray runtime started" not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The node {name} did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and all below it, from the top."""
    for pid in (process.pid, *_below(process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _below(top: int) -> list[int]:
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    below = [top]
    for pid in below:
        below += [child for child, parent in parents.items() if parent == pid]
    return below[1:]
