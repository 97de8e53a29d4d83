"""Finds the processes of a run by what they are called, and kills them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Victim = Literal["worker", "hung worker", "controller", "driver", "node", "tracking server"]

_TITLES: dict[Victim, bytes] = {
    "worker": b"ray::RayTrainWorker",
    "hung worker": b"ray::RayTrainWorker",
    "controller": b"ray::TrainController",
}


def processes(mark: str) -> Iterator[tuple[int, bytes]]:
    """Yields id and command line of every living process that was started with `mark` in its environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX":
                    yield int(folder.name), (folder / "cmdline").read_bytes()


def titled(mark: str, victim: Victim) -> list[int]:
    """Returns the process ids of a run's workers or controller."""
    return sorted(pid for pid, title in processes(mark) if title.startswith(_TITLES[victim]))


def kill_one(mark: str, victim: Victim, chance: random.Random) -> bool:
    """Kills one of the run's workers or its controller, or stops a worker for good; tells whether there was one."""
    found = titled(mark, victim)
    if not found:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(chance.choice(found), signal.SIGSTOP if victim == "hung worker" else signal.SIGKILL)
        return True
    return False


def kill_all(mark: str) -> None:
    """Kills whatever is left of a run."""
    for pid, _ in processes(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
