"""A one-node Ray cluster on loopback, which leaves other Ray clusters of this machine alone.

Ray's own `ray stop` ends every Ray process of the machine; here a process is ended by its id, and only
if the cluster started it.
"""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

from distributed_autolora.errors import RunFailedError, UserError
from distributed_autolora.orchestration.cluster.processes import end_family, start_watchdog, uninterrupted

# Above the ports that other clusters' workers use (10002-19999), below those that the kernel hands out.
_PORT_RANGE = range(20_000, 32_768)
_POLL_S = 0.1
# Variables that would direct a process to another cluster.
_OTHER_CLUSTERS = frozenset({"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_TMPDIR"})


class LocalCluster:
    """Starts a Ray head with a job server on loopback, and on leaving stops exactly what it started.

    If the program is killed, a watchdog stops them a moment later.

    Attributes:
        address: "127.0.0.1:PORT" of the cluster, for `ray.init`.
        dashboard_url: "http://127.0.0.1:PORT" of the job server, for `ray job submit --address`.
        folder: logs, sockets and temporary files of the cluster; removed at the end.

    Raises:
        UserError: on entering, when Ray's head ends at its start.
        RunFailedError: on entering, when the job server does not answer in time.
    """

    def __init__(self, *, num_cpus: int = 2, start_timeout_s: float = 120.0) -> None:
        self._num_cpus, self._start_timeout_s = num_cpus, start_timeout_s
        self._head: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._ports = _free_ports(6)
        self.address = f"127.0.0.1:{self._ports[0]}"
        self.dashboard_url = f"http://127.0.0.1:{self._ports[1]}"
        # UNIX sockets live in there, and their paths may have 107 characters at most.
        try:
            self.folder = Path(tempfile.mkdtemp(prefix="dal-", dir="/tmp"))
        except OSError as error:
            raise UserError(f"No folder can be made in /tmp ({error.strerror}), where Ray's sockets must be.") from None
        try:
            self._start()
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def environment(self) -> dict[str, str]:
        """Returns the environment for processes that talk to this cluster and to no other."""
        values = {key: value for key, value in os.environ.items() if key not in _OTHER_CLUSTERS}
        no_proxy = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1", "localhost"]))
        return values | {
            # `python` in a job's command line is this interpreter.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            # Ray's default depends on files in the home folder, and differs between its programs.
            "RAY_AUTH_MODE": "disabled",
            # Otherwise Ray replaces 127.0.0.1 by an address that other machines can reach.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            # Gloo would listen on the address that this machine's name resolves to.
            "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "NO_PROXY": no_proxy,
            "no_proxy": no_proxy,
            "PYTHONUNBUFFERED": "1",
        }

    def _start(self) -> None:
        gcs, dashboard, client, agent, autoscaler_metrics, dashboard_metrics = self._ports
        (self.folder / "tmp").mkdir()
        environment = self.environment() | {
            "TMPDIR": str(self.folder / "tmp"),
            "AUTOSCALER_METRIC_PORT": str(autoscaler_metrics),
            "DASHBOARD_METRIC_PORT": str(dashboard_metrics),
        }
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        command += ["--node-ip-address=127.0.0.1", f"--port={gcs}", f"--num-cpus={self._num_cpus}"]
        command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={self.folder}"]
        command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        with self._log.open("wb") as log:
            self._head = subprocess.Popen(
                command,
                env=environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in a terminal reaches a whole group: the cluster must outlive it to be stopped in order.
                start_new_session=True,
            )
        self._watchdog = start_watchdog(self._head.pid, self.folder)

    def _wait_until_ready(self) -> None:
        assert self._head is not None
        deadline = time.monotonic() + self._start_timeout_s
        while not _answers(f"{self.dashboard_url}/api/version"):
            status = self._head.poll()
            if status is not None:
                raise UserError(
                    f"The local Ray cluster ended with status {status} at its start. Its log ends: {self._log_tail()}"
                )
            if time.monotonic() > deadline:
                raise RunFailedError(
                    f"The local Ray cluster did not answer within {self._start_timeout_s:.0f} s; "
                    f"try again when the machine is less busy. Its log ends: {self._log_tail()}"
                )
            time.sleep(_POLL_S)

    @property
    def _log(self) -> Path:
        return self.folder / "head.log"

    def _log_tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return " | ".join([line.strip() for line in lines if line.strip()][-8:]) or "(nothing)"

    def _stop(self) -> None:
        with uninterrupted():
            if self._head is not None:
                end_family(self._head)
                self._head = None
            shutil.rmtree(self.folder, ignore_errors=True)
            if self._watchdog is not None:
                self._watchdog.kill()
                self._watchdog.communicate()
                self._watchdog = None


def _free_ports(count: int) -> list[int]:
    """Returns distinct TCP ports that nothing on this machine listens on."""
    ports: list[int] = []
    with contextlib.ExitStack() as held:
        # Not the global generator: seeded programs would all get the same ports.
        for port in random.SystemRandom().sample(_PORT_RANGE, len(_PORT_RANGE)):
            listener = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", port))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise UserError(f"No {count} TCP ports are free between {_PORT_RANGE.start} and {_PORT_RANGE.stop - 1}: free some.")


def _answers(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
