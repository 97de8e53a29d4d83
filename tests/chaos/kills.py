"""Kills processes of a run, found by their titles, at a random time or at a critical point."""

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

Victim = Literal["worker", "hung worker", "controller", "driver", "node", "tracking server"]
Moment = Literal["any time", "while a checkpoint is written", "between report and registration"]

_TITLES: dict[Victim, bytes] = {
    "worker": b"ray::RayTrainWorker",
    "hung worker": b"ray::RayTrainWorker",
    "controller": b"ray::TrainController",
}
_LONGEST_S, _EVERY_S = 30.0, 0.002


def processes(mark: str) -> Iterator[tuple[int, bytes]]:
    """Yields id and command line of every living process that was started with `mark` in its environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX":
                    yield int(folder.name), (folder / "cmdline").read_bytes()


def kill_one(mark: str, victim: Victim, chance: random.Random) -> bool:
    """Kills one of the run's workers or its controller, or stops a worker for good; tells whether there was one."""
    found = sorted(pid for pid, title in processes(mark) if title.startswith(_TITLES[victim]))
    if not found:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(chance.choice(found), signal.SIGSTOP if victim == "hung worker" else signal.SIGKILL)
        return True
    return False


def kill_all(mark: str) -> None:
    for pid, _ in processes(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Plan(NamedTuple):
    """One kill to come: not before `at` (monotonic clock), at a moment that `is_there` recognises."""

    moment: Moment
    at: float
    is_there: Callable[[], bool]


def plan(chance: random.Random, run: Path) -> Plan:
    moment: Moment = chance.choice(get_args(Moment))
    delay = chance.uniform(0.5, 6.0)
    seen: set[str] = set()

    def is_there() -> bool:
        if moment == "any time":
            return True
        folders = {folder for folder in (run / "train").glob("checkpoint_*/") if folder.name not in seen}
        if not seen and folders:
            seen.update(folder.name for folder in folders)
            return False
        if moment == "while a checkpoint is written":
            return any(not (folder / "state.json").exists() for folder in folders)
        whole = {folder.name for folder in folders if (folder / "state.json").exists()}
        return bool(whole - registered(run))

    return Plan(moment, time.monotonic() + delay, is_there)


def wait_for(planned: Plan, is_over: Callable[[], bool]) -> bool:
    """Waits for the moment; tells whether it came before the run was over or too long had passed."""
    deadline = planned.at + _LONGEST_S
    while not is_over() and time.monotonic() < deadline:
        if time.monotonic() >= planned.at and planned.is_there():
            return True
        time.sleep(_EVERY_S)
    return False


def registered(run: Path) -> set[str]:
    """Returns the names of the checkpoints that Ray Train knows of; all names while its list is being written."""
    try:
        results = json.loads((run / "train" / "checkpoint_manager_snapshot.json").read_text())["checkpoint_results"]
    except (OSError, ValueError):
        return {folder.name for folder in (run / "train").glob("checkpoint_*/")}
    return {Path(result["checkpoint_dir_name"]).name for result in results}
