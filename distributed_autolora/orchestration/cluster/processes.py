"""Signals and process ids: ends all processes that were started, and no others.

A program that is killed by SIGKILL or for lack of memory ends nothing that it started. Its watchdog, this module run
with HEAD_PID and FOLDER, reads a pipe whose other end only that program holds, so it sees the program's end.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, `kill` and schedulers, a closed terminal."""

_POLL_S = 0.1
_END_TIMEOUT_S = 15.0


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignores Ctrl-C, SIGTERM and SIGHUP inside, so that a clean-up is completed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handled_by(signal.SIG_IGN, STOP_SIGNALS):
        yield


@contextlib.contextmanager
def stop_signals_interrupt() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP (a closed terminal) raise KeyboardInterrupt inside, as Ctrl-C does; prints a line.

    A signal that the caller ignores (SIGHUP under nohup) stays ignored.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        # Not print: the signal may have come in the middle of one. After SIGHUP there may be no terminal.
        with contextlib.suppress(OSError):
            os.write(2, b"\nStopping ...\n")
        raise KeyboardInterrupt

    numbers = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    with _handled_by(interrupt, numbers):
        yield


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Raises KeyboardInterrupt for a stop signal only when the block has ended; for a second one at once.

    A signal that the caller ignores stays ignored. In another thread than the main one nothing is held back.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    try:
        with _handled_by(note, numbers):
            yield
    finally:
        if received:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _handled_by(handler: Any, numbers: Iterable[signal.Signals]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


_Process = tuple[int, int]
"""A process id with its start time is unique; the id alone may be reused."""


class _Seen(NamedTuple):
    process: _Process
    parent: int
    session: int
    alive: bool


def end_family(head: subprocess.Popen[Any]) -> None:
    """Ends the head and all its descendants, orphans included; returns when none is left."""
    _end_session(head.pid, lambda: head.poll() is None)
    # Without /proc the process group is all that is known of the family.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(head.pid, signal.SIGKILL)
    head.wait()


def started_at(pid: int) -> int | None:
    """Returns the start time of a living process, in the system's own unit; None without one, or without /proc."""
    return next((seen.process[1] for seen in _process_table() if seen.process[0] == pid and seen.alive), None)


def end_orphans(head: int, started: int | None) -> None:
    """Ends the processes of a session whose head this process did not start; returns when none is left.

    A process with the head's id and another start time than `started` is left alone.
    """
    if started_at(head) in (None, started):
        _end_session(head, lambda: started_at(head) is not None)


def _end_session(head: int, is_alive: Callable[[], bool]) -> None:
    """Terminates the head, waits for its end, then kills the rest of its family until none is left."""
    family = _relatives(head, set())
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(head, signal.SIGTERM)
    deadline = time.monotonic() + _END_TIMEOUT_S
    while is_alive() and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        family = _relatives(head, family)
    deadline = time.monotonic() + _END_TIMEOUT_S
    while (family := _relatives(head, family)) and time.monotonic() < deadline:
        for process in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process[0], signal.SIGKILL)
        time.sleep(_POLL_S)


def _relatives(head: int, known: set[_Process]) -> set[_Process]:
    """Returns the living processes of the head's session, those already known, and all their descendants.

    Without /proc (outside Linux) there is only the head's process group to go by, and the set is empty.
    """
    table = {seen.process[0]: seen for seen in _process_table()}
    family = {pid for pid, seen in table.items() if seen.session == head or seen.process in known}
    while grown := {pid for pid, seen in table.items() if seen.parent in family} - family:
        family |= grown
    return {table[pid].process for pid in family if table[pid].alive}


def _process_table() -> Iterator[_Seen]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The name in parentheses may itself hold spaces and parentheses.
            state, parent, _, session, *rest = (folder / "stat").read_text().rpartition(")")[2].split()
            yield _Seen((int(folder.name), int(rest[15])), int(parent), int(session), state not in "ZX")


def start_watchdog(head: int, folder: Path) -> subprocess.Popen[bytes]:
    """Starts the process that ends a cluster after this program; kill it when the cluster was ended in order.

    `head` leads a session of its own; the folder is removed with the cluster.
    """
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(head), str(folder)],
        cwd=Path(__file__).resolve().parents[3],  # where the package is, if it is not installed
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _watch() -> None:
    """Waits for the end of the program, then ends its cluster and removes the folder."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    head, folder = int(sys.argv[1]), Path(sys.argv[2])
    started = started_at(head)
    sys.stdin.buffer.read()
    end_orphans(head, started)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _watch()
