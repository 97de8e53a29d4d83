"""Moments of kills: after some time, or at a critical point."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

Moment = Literal["any time", "while a checkpoint is written", "between report and registration"]
MOMENTS: tuple[Moment, ...] = ("any time", "while a checkpoint is written", "between report and registration")

_LONGEST_S, _EVERY_S = 30.0, 0.002


class Plan(NamedTuple):
    """One kill to come: not before `at` (monotonic clock), at a moment that `is_there` recognises."""

    moment: Moment
    at: float
    is_there: Callable[[], bool]


def plan(chance: random.Random, run: Path) -> Plan:
    """Draws when the next kill happens.

    Args:
        chance: where the draw comes from.
        run: the run's folder.
    """
    moment = chance.choice(MOMENTS)
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
