"""What the runs of a study cost, in the seconds of its workers and in passes of images through the network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from distributed_autolora.reporting.study.loading import StudyResults, StudyRun


@dataclass(frozen=True)
class Cost:
    """Training and validation; the judgement on the test split is not in it. None: not recorded."""

    worker_seconds: float
    forward_passes: int | None
    backward_passes: int | None

    @property
    def passes(self) -> int | None:
        """Forward and backward image passes together."""
        known = self.forward_passes is not None and self.backward_passes is not None
        return (self.forward_passes or 0) + (self.backward_passes or 0) if known else None

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.worker_seconds + other.worker_seconds,
            _sum([self.forward_passes, other.forward_passes]),
            _sum([self.backward_passes, other.backward_passes]),
        )

    def over(self, runs: int) -> Cost:
        """Returns the mean of a sum over `runs` runs."""
        forward, backward = (
            None if count is None else round(count / runs) for count in (self.forward_passes, self.backward_passes)
        )
        return Cost(self.worker_seconds / runs, forward, backward)


NOTHING = Cost(0.0, 0, 0)


def cost_of(run: StudyRun) -> Cost:
    """Returns the cost of a run: from its result, or of the epochs it finished, as far as they were recorded."""
    if run.result is not None:
        told = run.result.cost
        return Cost(told.worker_seconds, told.forward_passes, told.backward_passes)
    seconds = sum(record["seconds/epoch"] * record.get("num_workers", 1) for record in run.history)
    forward, backward = (
        _sum([record.get(f"passes/{way}") for record in run.history]) for way in ("forward", "backward")
    )
    return Cost(seconds, forward, backward)


def total(runs: Iterable[StudyRun]) -> Cost:
    """Returns the cost of several runs together; that of no run is nothing."""
    return sum((cost_of(run) for run in runs), NOTHING)


def search_cost(study: StudyResults, arm: str) -> Cost:
    """Returns the cost of an arm's search, failed and stopped trials included."""
    return total(study.of(arm, "search"))


def mean_final_cost(study: StudyResults, arm: str) -> Cost | None:
    """Returns the mean cost of an arm's finished final runs, None where there is none."""
    runs = study.judged(arm)
    return total(runs).over(len(runs)) if runs else None


def _sum(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
