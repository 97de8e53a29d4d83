"""The progress of a study: one line for each run that ends."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from distributed_autolora.console import print_line
from distributed_autolora.records import EpochRecord, PlannedRun
from distributed_autolora.reporting.format import attack_label, duration, left_text


@dataclass
class StudyProgress:
    """Counts runs, takes their times, and prints a line for each that ends."""

    in_all: int
    done: int
    at_a_time: int
    say: Callable[[str], None] = print_line
    clock: Callable[[], float] = time.monotonic
    _started: dict[str, float] = field(default_factory=dict)
    _durations: list[float] = field(default_factory=list)

    def started(self, run: PlannedRun) -> None:
        """Takes the time at which a run starts."""
        self._started[str(run.run)] = self.clock()

    def ended(self, run: PlannedRun, history: Sequence[EpochRecord]) -> None:
        """Prints how a run ended."""
        self.done += 1
        took = self.clock() - self._started.pop(str(run.run), self.clock())
        if run.status == "finished":
            self._durations.append(took)
        width = len(str(self.in_all))
        line = f"[{self.done:>{width}}/{self.in_all}] {run.label}: {outcome_text(run, history)} in {duration(took)}"
        left = self.seconds_left()
        self.say(line if left is None else f"{line}; {left_text(left)}")

    def seconds_left(self) -> float | None:
        """Returns the mean duration of the finished runs times those left, over those at a time; None: unknown."""
        if not self._durations:
            return None
        mean, now = sum(self._durations) / len(self._durations), self.clock()
        running = sum(max(0.0, mean - (now - start)) for start in self._started.values())
        waiting = self.in_all - self.done - len(self._started)
        return (running + waiting * mean) / self.at_a_time


def outcome_text(run: PlannedRun, history: Sequence[EpochRecord]) -> str:
    """Returns "val PGD-10 78.4 %", or how the run ended otherwise."""
    if run.status in ("failed", "diverged"):
        return f"{run.status.upper()} ({run.error})"
    if not history:
        return run.status.replace("_", " ")
    last = history[-1]
    stopped = f", stopped early after epoch {len(history)}" if run.status == "stopped_early" else ""
    return f"val {attack_label(last.attack)} {100 * last.best_robust_accuracy:.1f} %{stopped}"
