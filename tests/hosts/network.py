"""Hosts that are network namespaces of this machine, on a switch, each with an address of its own. Needs root."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.cluster.processes import uninterrupted

INTERFACE = "link0"
"""Name of every host's interface; the address behind it is the host's own."""

_PREFIX = "two-hosts"
_NAMESPACES = Path("/run/netns")
_KILL_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Host:
    """One network namespace, unique on this machine."""

    name: str
    namespace: str
    address: str
    """IPv4, known to the other hosts only."""
    port: str
    """The switch's end of the cable."""

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path, log: BinaryIO
    ) -> subprocess.Popen[bytes]:
        """Starts a program on this host in a session of its own."""
        arguments = ["ip", "netns", "exec", self.namespace, *command]
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        return subprocess.Popen(arguments, env=environment, cwd=folder, start_new_session=True, **streams)

    def processes(self) -> dict[int, str]:
        """Returns the living processes of this host: their ids and command lines."""
        own = (_NAMESPACES / self.namespace).stat()
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            # A process may end meanwhile; one that has ended but was not waited for has no namespace.
            with contextlib.suppress(OSError):
                its = (folder / "ns" / "net").stat()
                if (its.st_dev, its.st_ino) == (own.st_dev, own.st_ino):
                    title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    found[int(folder.name)] = title
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
        _remove_leftovers()
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._remove()

    def cut(self, host: Host) -> None:
        """Pulls the host's cable at the switch: its address and routes stay, and packets vanish."""
        _ip("-n", self._switch, "link", "set", host.port, "down")

    def restore(self, host: Host) -> None:
        """Puts the cable back."""
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

    def _remove(self) -> None:
        with uninterrupted():
            for host in self.hosts:
                _remove_host(host)
            if (_NAMESPACES / self._switch).exists():
                _ip("netns", "delete", self._switch)


def _remove_host(host: Host) -> None:
    if not (_NAMESPACES / host.namespace).exists():
        return
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while (left := host.processes()) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    _ip("netns", "delete", host.namespace)


def _remove_leftovers() -> None:
    """Removes what a program that was killed left: namespaces that carry the id of a process that is no more."""
    for path in _NAMESPACES.glob(f"{_PREFIX}-*-*"):
        owner, name = path.name.removeprefix(f"{_PREFIX}-").split("-", 1)
        if not Path("/proc", owner).exists():
            _remove_host(Host(name, path.name, "", ""))


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"ip {' '.join(arguments)}: {done.stderr.strip()}. Network namespaces need root.")
