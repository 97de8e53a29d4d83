"""Which differences between the arms of a study its seeds can show."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from distributed_autolora.reporting.markdown import counted, number_word
from distributed_autolora.reporting.statistics import (
    holm,
    mcnemar_exact,
    smallest_significant_difference,
    t_test,
)
from distributed_autolora.reporting.study import Study
from distributed_autolora.reporting.study_outcomes import only_one_right

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Comparison:
    """One cell: the reference against a baseline on one accuracy. A test that is undefined is None."""

    reference: str
    baseline: str
    metric: str
    reference_values: tuple[float, ...]
    baseline_values: tuple[float, ...]
    needed: float | None
    """Difference at which the smallest p-value of this many cells would pass, at this spread."""
    student: float | None
    welch: float | None
    student_holm: float | None = None
    welch_holm: float | None = None

    @property
    def difference(self) -> float:
        """Mean of the reference less mean of the baseline, a fraction; equal means differ by exactly 0."""
        return round(statistics.fmean(self.reference_values) - statistics.fmean(self.baseline_values), 12)

    @property
    def can_be_claimed(self) -> bool:
        """Both tests are below 0.05 after Holm's correction over all cells."""
        return all(p is not None and p < SIGNIFICANCE for p in (self.student_holm, self.welch_holm))

    @property
    def seeds(self) -> str:
        """The numbers of seeds in words: "three seeds", "three and two seeds"."""
        one, other = len(self.reference_values), len(self.baseline_values)
        return counted(one, "seed") if one == other else f"{number_word(one)} and {counted(other, 'seed')}"

    @property
    def remark(self) -> str:
        """What the tests of this cell allow to say."""
        if self.student is None:
            few = min(len(self.reference_values), len(self.baseline_values)) < 2
            return f"undefined: {'one seed' if few else 'no spread between seeds'}"
        return "can be claimed" if self.can_be_claimed else f"{self.seeds} cannot show this"


@dataclass(frozen=True)
class McNemar:
    """Two models of the same seed on the same test images."""

    reference: str
    baseline: str
    metric: str
    seed: int
    only_reference: int
    only_baseline: int
    p: float


def compare(study: Study) -> list[Comparison]:
    """Returns every cell (baseline x accuracy) that both sides have values for, corrected over all of them."""
    values = [
        (arm.reference, arm.name, metric, _values(study, arm.reference, metric), _values(study, arm.name, metric))
        for arm in study.arms
        if arm.reference is not None
        for metric in study.metrics
    ]
    cells = [cell for cell in values if cell[3] and cell[4]]
    tested = [t_test(cell[3], cell[4], equal_variances=True) for cell in cells]
    strictest = SIGNIFICANCE / max(1, sum(p is not None for p in tested))
    comparisons = [
        Comparison(
            *cell,
            needed=smallest_significant_difference(cell[3], cell[4], strictest),
            student=p,
            welch=t_test(cell[3], cell[4], equal_variances=False),
        )
        for cell, p in zip(cells, tested, strict=True)
    ]
    return corrected(comparisons)


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Returns the cells with Holm's correction over all of them, for each of the two tests."""
    student = holm([cell.student for cell in comparisons])
    welch = holm([cell.welch for cell in comparisons])
    return [
        replace(cell, student_holm=one, welch_holm=other)
        for cell, one, other in zip(comparisons, student, welch, strict=True)
    ]


def mcnemar_tests(study: Study, pooled: Any) -> list[McNemar]:
    """Returns the paired test of every baseline, accuracy and seed whose per-image outcomes both sides kept.

    Args:
        study: the study.
        pooled: its outcomes, from `pooled_outcomes`.
    """
    tests = []
    for arm in study.arms:
        if arm.reference is None:
            continue
        for metric in study.metrics:
            seeds = [s for s in study.accuracies(arm.name, metric) if s in study.accuracies(arm.reference, metric)]
            for seed in seeds:
                found = only_one_right(pooled, arm.reference, arm.name, seed, metric)
                if found is not None:
                    tests.append(McNemar(arm.reference, arm.name, metric, seed, *found, p=mcnemar_exact(*found)))
    return tests


def _values(study: Study, arm: str, metric: str) -> tuple[float, ...]:
    return tuple(counts.accuracy for counts in study.accuracies(arm, metric).values())
