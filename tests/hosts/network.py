"""Hosts that are network namespaces of this machine, on a switch, each with an address of its own. Needs root."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.cluster.processes import uninterrupted

INTERFACE = "link0"
"""Name of every host's interface; the address behind it is the host's own."""

_PREFIX = "two-hosts"
_NAMESPACES = Path("/run/netns")
_KILL_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Host:
    """One network namespace; `port` is the switch's end of its cable."""

    name: str
    namespace: str
    address: str
    port: str

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.namespace)

    def processes(self) -> dict[int, str]:
        """Returns the living processes of this host: their ids and command lines."""
        found = {}
        for pid in map(int, _ip("netns", "pids", self.namespace).split()):
            with contextlib.suppress(OSError):  # it may have ended since
                found[pid] = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
        return found


class Network:
    """Makes hosts on a switch, and on leaving ends every process on them and removes all of it.

    The hosts get the addresses 10.77.0.1, 10.77.0.2, ... inside their namespaces only: several networks do not meet.

    Raises:
        UserError: on entering, without the rights or the programs to make one.
    """

    def __init__(self, names: Sequence[str]) -> None:
        own = f"{_PREFIX}-{os.getpid()}"
        self._switch = f"{own}-switch"
        self.hosts = [
            Host(name, f"{own}-{name}", f"10.77.0.{number}", f"port{number}") for number, name in enumerate(names, 1)
        ]

    def __enter__(self) -> Self:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise UserError("Network namespaces need root and the program ip (iproute2): run this with sudo.")
        self._remove_leftovers()
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        with uninterrupted():
            for namespace in (*(host.namespace for host in self.hosts), self._switch):
                _remove(namespace)

    def cut(self, host: Host) -> None:
        """Pulls the host's cable at the switch: its address and routes stay, and packets vanish."""
        _ip("-n", self._switch, "link", "set", host.port, "down")

    def restore(self, host: Host) -> None:
        _ip("-n", self._switch, "link", "set", host.port, "up")

    def _make(self) -> None:
        for namespace in (self._switch, *(host.namespace for host in self.hosts)):
            _ip("netns", "add", namespace)
        _ip("-n", self._switch, "link", "add", "bridge0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge0", "up")
        for host in self.hosts:
            ends = ("peer", "name", INTERFACE, "netns", host.namespace)
            _ip("-n", self._switch, "link", "add", host.port, "type", "veth", *ends)
            _ip("-n", self._switch, "link", "set", host.port, "master", "bridge0", "up")
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", INTERFACE)
            _ip("-n", host.namespace, "link", "set", "lo", "up")
            _ip("-n", host.namespace, "link", "set", INTERFACE, "up")

    def _remove_leftovers(self) -> None:
        """Removes what a program that was killed left: namespaces with the id of a process that is no more."""
        for path in _NAMESPACES.glob(f"{_PREFIX}-*-*"):
            if not Path("/proc", path.name.removeprefix(f"{_PREFIX}-").split("-")[0]).exists():
                _remove(path.name)


def _remove(namespace: str) -> None:
    if not (_NAMESPACES / namespace).exists():
        return
    host, deadline = Host("", namespace, "", ""), time.monotonic() + _KILL_TIMEOUT_S
    while (left := host.processes()) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    _ip("netns", "delete", namespace)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"ip {' '.join(arguments)}: {done.stderr.strip()}. Network namespaces need root.")
    return done.stdout
