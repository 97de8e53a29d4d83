"""The progress of a study: one line for each run that ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from distributed_autolora.console import print_line
from distributed_autolora.records import EpochRecord, PlannedRun
from distributed_autolora.reporting.format import attack_label, duration, left_text


class StudyProgress:
    """Counts runs, takes their times, and prints a line for each that ends.

    Args:
        in_all: runs of the study.
        done: runs that need no work any more.
        at_a_time: runs that are made at the same time.
        say: takes a line.
        clock: seconds from any start.
    """

    def __init__(
        self,
        in_all: int,
        done: int,
        at_a_time: int,
        say: Callable[[str], None] = print_line,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._in_all, self._done, self._at_a_time = in_all, done, at_a_time
        self._say, self._clock = say, clock
        self._started: dict[str, float] = {}
        self._durations: list[float] = []

    def started(self, run: PlannedRun) -> None:
        """Takes the time at which a run was started."""
        self._started[str(run.run)] = self._clock()

    def ended(self, run: PlannedRun, history: Sequence[EpochRecord]) -> None:
        """Prints how a run ended.

        Args:
            run: with its new status.
            history: its records.
        """
        self._done += 1
        took = self._clock() - self._started.pop(str(run.run), self._clock())
        if run.status == "finished":
            self._durations.append(took)
        width = len(str(self._in_all))
        line = f"[{self._done:>{width}}/{self._in_all}] {run.label}: {outcome_text(run, history)} in {duration(took)}"
        left = self.seconds_left()
        self._say(line if left is None else f"{line}; {left_text(left)}")

    def seconds_left(self) -> float | None:
        """Returns the mean duration of the finished runs times those left, over those at a time; None: unknown."""
        if not self._durations:
            return None
        mean, now = sum(self._durations) / len(self._durations), self._clock()
        running = sum(max(0.0, mean - (now - start)) for start in self._started.values())
        waiting = self._in_all - self._done - len(self._started)
        return (running + waiting * mean) / self._at_a_time


def outcome_text(run: PlannedRun, history: Sequence[EpochRecord]) -> str:
    """Returns "val PGD-10 78.4 %", or how the run ended otherwise."""
    if run.status in ("failed", "diverged"):
        return f"{run.status.upper()} ({run.error})"
    if not history:
        return run.status.replace("_", " ")
    last = history[-1]
    stopped = f", stopped early after epoch {len(history)}" if run.status == "stopped_early" else ""
    return f"val {attack_label(last.attack)} {100 * last.best_robust_accuracy:.1f} %{stopped}"
