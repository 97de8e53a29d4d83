"""A Ray head on the first host and a raylet on the second, started again whenever it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.cluster.processes import uninterrupted
from tests.hosts.network import INTERFACE, Host

ROOT = Path(__file__).resolve().parents[2]
FAST_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
"""For the head: a node is dead after 3 checks of a second without an answer; Ray's defaults are 5 of 10 seconds."""

_GCS_PORT = 6379
_SOCKET_PATH_MAX = 107
_LONGEST_SOCKET = "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.99"
"""A node's first raylet has no number, one that is started again does."""
_START_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 20.0
_RESTART_AFTER_S = 1.0


class Raylets:
    """Starts both, one CPU each; on leaving stops them in order.

    Args:
        hosts: the head's, with the programs that use the cluster, and the other raylet's.
        folder: for the hosts' temporary files.
        head_settings: more environment variables of the head.
        note: called with every event of the raylet on the second host.

    Raises:
        UserError: when the folder's path is too long for the sockets in it; on entering, when the head does not start.
    """

    def __init__(
        self, hosts: Sequence[Host], folder: Path, head_settings: Mapping[str, str], note: Callable[[str], None]
    ) -> None:
        longest = folder / max((host.name for host in hosts), key=len) / _LONGEST_SOCKET
        if len(os.fsencode(longest)) > _SOCKET_PATH_MAX:
            raise UserError(f"The path of {longest} has more than {_SOCKET_PATH_MAX} bytes: give a shorter folder.")
        self._first, self._second = hosts
        self._folder, self._head_settings, self._note = folder, head_settings, note
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, daemon=True)

    def __enter__(self) -> Self:
        try:
            self._start_head()
            self._supervisor.start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def environment(self, host: Host) -> dict[str, str]:
        """Returns the environment of programs on a host that use this cluster and no other."""
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("RAY_", "MLFLOW_")) and not key.lower().endswith("_proxy")
        }
        scratch = self._folder / host.name / "tmp"
        scratch.mkdir(parents=True, exist_ok=True)
        return kept | {
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(scratch),
            "RAY_TMPDIR": str(self._folder / host.name),
            "RAY_ADDRESS": f"{self._first.address}:{_GCS_PORT}",
            "RAY_AUTH_MODE": "disabled",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            # The name of this machine is an address of loopback, as on many machines: gloo would offer it to peers.
            "GLOO_SOCKET_IFNAME": INTERFACE,
            "OMP_NUM_THREADS": "1",
        }

    def _start_head(self) -> None:
        process = self._start(self._first, ["--head", f"--port={_GCS_PORT}", "--include-dashboard=false"])
        log = self._log(self._first)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while "Ray runtime started" not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise UserError(f"The Ray head did not start: {' | '.join(log.read_text().splitlines()[-8:])}")
            time.sleep(0.1)

    def _supervise(self) -> None:
        """Starts the second raylet again whenever it ends, as an init system would."""
        while not self._stopping.is_set():
            process = self._start(self._second, [f"--address={self._first.address}:{_GCS_PORT}"])
            self._note(f"`ray start` on the {self._second.name} host")
            status = process.wait()
            if not self._stopping.is_set():
                self._note(f"`ray start` on the {self._second.name} host ended by itself with status {status}")
            self._stopping.wait(_RESTART_AFTER_S)

    def _start(self, host: Host, role: list[str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *role]
        command += [f"--node-ip-address={host.address}", "--num-cpus=1", f"--temp-dir={self._folder / host.name}"]
        command += ["--object-store-memory=200000000"]
        environment = self.environment(host) | (dict(self._head_settings) if "--head" in role else {})
        # `ray start` reads it as the flag --address.
        del environment["RAY_ADDRESS"]
        with self._log(host).open("ab") as log:
            process = host.start(command, environment, self._folder, log)
        self._processes[host.name] = process
        return process

    def _log(self, host: Host) -> Path:
        return self._folder / f"ray-start-{host.name}.log"

    def _stop(self) -> None:
        with uninterrupted():
            self._stopping.set()
            for host in (self._second, self._first):
                self._end(host)

    def _end(self, host: Host) -> None:
        """Ends a host's `ray start`, and one that its supervisor is about to start."""
        told: set[int] = set()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while process := self._processes.get(host.name):
            is_supervised = host is self._second and self._supervisor.is_alive()
            if process.poll() is not None and not is_supervised:
                return
            if process.pid not in told:
                process.terminate()
                told.add(process.pid)
            elif time.monotonic() > deadline:
                process.kill()
            time.sleep(0.1)
