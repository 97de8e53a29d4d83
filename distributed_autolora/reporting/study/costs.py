"""What the runs of a study cost, in the seconds of its workers and in passes of images through the network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from distributed_autolora.reporting.study.loading import StudyResults, StudyRun


@dataclass(frozen=True)
class Cost:
    """Training and validation; the test is not in it."""

    worker_seconds: float = 0.0
    forward_passes: int = 0
    backward_passes: int = 0

    @property
    def passes(self) -> int:
        """Forward and backward image passes together."""
        return self.forward_passes + self.backward_passes

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.worker_seconds + other.worker_seconds,
            self.forward_passes + other.forward_passes,
            self.backward_passes + other.backward_passes,
        )


def cost_of(run: StudyRun) -> Cost:
    """Returns the cost of a run: from its result, or of the epochs it finished."""
    if run.result is None:
        epochs = ((e.epoch_seconds * e.num_workers, e.passes.forward, e.passes.backward) for e in run.history)
        return sum((Cost(*epoch) for epoch in epochs), Cost())
    return Cost(run.result.cost.worker_seconds, run.result.cost.forward_passes, run.result.cost.backward_passes)


def total(runs: Iterable[StudyRun]) -> Cost:
    """Returns the cost of several runs together."""
    return sum((cost_of(run) for run in runs), Cost())


def search_cost(study: StudyResults, arm: str) -> Cost:
    """Returns the cost of an arm's search, failed and stopped trials included."""
    return total(study.of(arm, "search"))


def mean_final_cost(study: StudyResults, arm: str) -> Cost | None:
    """Returns the mean cost of an arm's finished final runs, None where there is none."""
    runs = study.evaluated(arm)
    if not runs:
        return None
    cost, count = total(runs), len(runs)
    return Cost(cost.worker_seconds / count, round(cost.forward_passes / count), round(cost.backward_passes / count))
