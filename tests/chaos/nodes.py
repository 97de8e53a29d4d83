"""A Ray cluster of several raylets, on this machine or in network namespaces, whose nodes are started again."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.gcs_pb2 import GcsNodeInfo

from tests.hosts.network import Host
from tests.orchestration.mlflow_tracking.tracking_server import free_port
from tests.programs import below, wait_for

FAST_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
"""For the head: a node is dead after 3 checks of a second without an answer; Ray's defaults are 5 of 10 seconds."""

_RAY = (sys.executable, "-m", "ray.scripts.scripts")


class Nodes:
    """A head, and more nodes with one CPU each.

    Args:
        folder: for Ray's own files and logs; its path must be short.
        count: nodes beside the head.
        environment: of all their processes.
        head_cpus: CPUs of the head.
        settings: more environment variables.
        hosts: where the head and the other nodes run; none: all on this machine.
        note: called with what happens to the nodes beside the head.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        environment: Mapping[str, str],
        head_cpus: int = 1,
        *,
        settings: Mapping[str, str] = FAST_HEALTH_CHECKS,
        hosts: Sequence[Host] = (),
        note: Callable[[str], None] = lambda what: None,
    ) -> None:
        self._folder, self._environment, self._note = folder, {**environment, **settings}, note
        self._environment.pop("RAY_ADDRESS", None)  # `ray start` reads it as the flag --address
        self._head_cpus, self._hosts = head_cpus, hosts
        self.address = f"{hosts[0].address if hosts else '127.0.0.1'}:{free_port()}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._away: set[int] = set()
        for number in range(count + 1):
            # One after another: two that start at the same moment on one machine may choose the same port.
            self._processes.append(self._start(number))
            self._wait(number)
        self._is_closing = threading.Event()
        threading.Thread(target=self._tend, daemon=True).start()

    def ids(self) -> list[str]:
        found = GcsClient(address=self.address).get_all_node_info().values()
        alive = [node for node in found if node.state == GcsNodeInfo.ALIVE and not node.is_head_node]
        return [node.node_id.hex() for node in sorted(alive, key=lambda node: int(node.start_time_ms))]

    def announce_the_end(self, node_id: str, seconds: int) -> None:
        command = [*_RAY, "drain-node", f"--address={self.address}", f"--node-id={node_id}"]
        command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
        command += [f"--deadline-remaining-seconds={seconds}"]
        subprocess.run(command, env=self._environment, check=True, capture_output=True)

    def kill(self, number: int) -> None:
        """Kills all processes of a node, numbered from 1; another comes in its place."""
        process = self._processes[number]
        for pid in (process.pid, *below(process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def take_away(self, number: int) -> None:
        """Kills a node, and nothing comes in its place."""
        self._away.add(number)
        self.kill(number)

    def bring_back(self, number: int) -> None:
        """Lets a new node come in the place of one that was taken away."""
        self._away.discard(number)

    def close(self) -> None:
        self._is_closing.set()
        for number in reversed(range(len(self._processes))):
            self.kill(number)

    def _tend(self) -> None:
        while not self._is_closing.wait(1.0):
            for number, process in enumerate(self._processes):
                if number and number not in self._away and process.poll() is not None and not self._is_closing.is_set():
                    self._note(f"the raylet of node {number} ended with status {process.returncode} and is started")
                    self._processes[number] = self._start(number)

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        host = self._hosts[number] if self._hosts else None
        command = [*(host.prefix if host else ()), *_RAY, "start", "--block", "--disable-usage-stats"]
        command += [f"--node-ip-address={host.address if host else '127.0.0.1'}", "--object-store-memory=100000000"]
        if number:
            command += [f"--address={self.address}", "--num-cpus=1"]
        else:
            command += ["--head", f"--port={self.address.partition(':')[2]}", f"--num-cpus={self._head_cpus}"]
            command += ["--include-dashboard=false"]
        if host or not number:  # on one machine the nodes share the head's folder
            command += [f"--temp-dir={self._folder / (host.name if host else 'ray')}"]
        command += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        with self._log(number).open("ab") as log:
            return subprocess.Popen(command, env=self._environment, stdout=log, stderr=log, start_new_session=True)

    def _wait(self, number: int) -> None:
        def has_started() -> bool:
            assert self._processes[number].poll() is None, self._log(number).read_text(errors="replace")[-2000:]
            return "Ray runtime started" in self._log(number).read_text(errors="replace")

        wait_for(has_started, f"the start of node {number}", 180)

    def _log(self, number: int) -> Path:
        return self._folder / f"node-{number}.log"
