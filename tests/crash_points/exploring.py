"""Starts a program again after every crash, and compares what it leaves with an undisturbed run's."""

import random
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.crash_points.recording import Recording, crashes, digest, put_back, state_of

Program = Callable[[Path, Any, Callable[[], None]], None]


class KnownError(Exception):
    """Raised in a program at a point from which it was seen to end well."""


@dataclass
class Tally:
    """What was tried."""

    operations: int = 0
    points: int = 0
    states: int = 0
    """Different ones of the points' folders."""
    ends: int = 0
    """Programs that were run to their end."""
    failures: Counter[str] = field(default_factory=Counter)
    """Number of states by what went wrong."""


def explore(
    home: Path, program: Program, material: Any, outcome: Callable[[Path], Any], sample: int | None = None
) -> Tally:
    """Crashes a program at every point, or at a fixed sample of them, and starts it again."""
    home.mkdir(parents=True)
    with Recording(home) as recording:
        program(home, material, lambda: None)
    expected = outcome(home)
    hashes = [digest(content) for content in crashes(recording.states)]
    first = {state: number for number, state in reversed(list(enumerate(hashes)))}
    chosen = set(first.values())
    if sample is not None:
        chosen = set(random.Random(0).sample(sorted(chosen), min(sample, len(chosen))))
    tally = Tally(len(recording.states) - 1, len(hashes), len(chosen))
    known: set[bytes] = set()
    for number, content in enumerate(crashes(recording.states)):
        if number in chosen:
            put_back(home, content)
            failure = _start_again(home, program, material, outcome, expected, known, tally)
            if failure:
                tally.failures[failure] += 1
    return tally


def _start_again(
    home: Path,
    program: Program,
    material: Any,
    outcome: Callable[[Path], Any],
    expected: Any,
    known: set[bytes],
    tally: Tally,
) -> str | None:
    """Returns what went wrong, None for an end like the undisturbed one."""
    passed: set[bytes] = set()

    def slow_part() -> None:
        state = state_of(home)
        if state in known:
            raise KnownError
        passed.add(state)

    try:
        program(home, material, slow_part)
        tally.ends += 1
        seen = outcome(home)
        if seen != expected:
            return f"another outcome: {_difference(seen, expected)}"
    except KnownError:
        pass
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:160]} ({Path(frame.filename).name}:{frame.lineno})"
    known |= passed
    return None


def _difference(seen: Any, expected: Any) -> str:
    if isinstance(seen, tuple):
        at = next(at for at, pair in enumerate(zip(seen, expected, strict=True)) if pair[0] != pair[1])
        return f"{at}, {_difference(seen[at], expected[at])}"
    if isinstance(seen, dict):
        return ", ".join(sorted(key for key in seen | expected if seen.get(key) != expected.get(key)))
    return str(seen ^ expected) if isinstance(seen, set) else f"{seen} for {expected}"[:300]
