"""Statistical tests between the arms of a study: over seeds, and paired on the same test images."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from distributed_autolora.reporting.format import counted
from distributed_autolora.reporting.statistics import (
    PairedInterval,
    holm,
    mcnemar_exact,
    paired_bootstrap,
    smallest_significant_difference,
    t_test,
)
from distributed_autolora.reporting.study.loading import APGD, AUTOATTACK, NATURAL, StudyResults
from distributed_autolora.reporting.study.outcomes import differences, only_one_right

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Comparison:
    """One cell: the reference against a baseline on one accuracy. A test that is undefined is None.

    The values of both are of the same seeds, in the same order: seeds differ by more than most methods do.
    """

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
    def reference_mean(self) -> float:
        """Mean of the reference over the seeds, a fraction."""
        return statistics.fmean(self.reference_values)

    @property
    def baseline_mean(self) -> float:
        """Mean of the baseline over the seeds, a fraction."""
        return statistics.fmean(self.baseline_values)

    @property
    def difference(self) -> float:
        """Mean of the reference less mean of the baseline, a fraction; equal means differ by exactly 0."""
        return round(self.reference_mean - self.baseline_mean, 12)

    @property
    def is_significant(self) -> bool:
        """Both tests are below 0.05 after Holm's correction over all cells."""
        return all(p is not None and p < SIGNIFICANCE for p in (self.student_holm, self.welch_holm))

    @property
    def seeds(self) -> str:
        """The number of seeds in words: "three seeds"."""
        return counted(len(self.reference_values), "seed")

    @property
    def remark(self) -> str:
        """The outcome of the tests."""
        if self.student is None:
            return "no test: one seed" if len(self.reference_values) < 2 else "no test: no spread between seeds"
        return "significant" if self.is_significant else "not significant"


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


@dataclass(frozen=True)
class Paired:
    """Two arms on the same seeds and the same test images."""

    reference: str
    baseline: str
    metric: str
    seeds: int
    images: int
    found: PairedInterval
    holm: float | None = None


def compare(study: StudyResults) -> list[Comparison]:
    """Returns every cell (baseline x accuracy) on the seeds that both sides have, corrected over all of them."""
    cells = []
    for arm in study.arms:
        for metric in study.metrics if arm.reference is not None else ():
            reference = str(arm.reference)
            mine, theirs = (study.accuracies(name, metric) for name in (reference, arm.id))
            seeds = [seed for seed in mine if seed in theirs]
            if seeds:
                own, other = (tuple(part[seed].accuracy for seed in seeds) for part in (mine, theirs))
                student, welch = (t_test(own, other, equal_variances=equal) for equal in (True, False))
                cells.append(Comparison(reference, arm.id, metric, own, other, None, student, welch))
    strictest = SIGNIFICANCE / max(1, sum(cell.student is not None for cell in cells))
    needed = (smallest_significant_difference(c.reference_values, c.baseline_values, strictest) for c in cells)
    return corrected([replace(cell, needed=least) for cell, least in zip(cells, needed, strict=True)])


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Returns the cells with Holm's correction over all of them, for each of the two tests."""
    adjusted = (holm([getattr(cell, test) for cell in comparisons]) for test in ("student", "welch"))
    return [
        replace(cell, student_holm=student, welch_holm=welch)
        for cell, student, welch in zip(comparisons, *adjusted, strict=True)
    ]


def paired_comparisons(study: StudyResults, pooled: Any) -> list[Paired]:
    """Returns every cell (baseline x accuracy) with outcomes by image of two seeds or more, corrected over all."""
    cells = []
    for arm in study.arms:
        for metric in study.metrics if arm.reference is not None else ():
            kept = differences(pooled, str(arm.reference), arm.id, study.accuracies(arm.id, metric), metric)
            if kept is not None and (found := paired_bootstrap(kept)) is not None:
                seeds, images = kept.shape
                cells.append(Paired(str(arm.reference), arm.id, metric, seeds, images, found))
    adjusted = holm([cell.found.p for cell in cells])
    return [replace(cell, holm=p) for cell, p in zip(cells, adjusted, strict=True)]


def mcnemar_tests(study: StudyResults, pooled: Any) -> list[McNemar]:
    """Returns the paired test of every baseline, accuracy and seed whose per-image outcomes both sides kept."""
    return [
        McNemar(reference, arm.id, metric, seed, *found, p=mcnemar_exact(*found))
        for arm in study.arms
        if (reference := arm.reference) is not None
        for metric in study.metrics
        for seed in study.accuracies(arm.id, metric)
        if seed in study.accuracies(reference, metric)
        and (found := only_one_right(pooled, reference, arm.id, seed, metric)) is not None
    ]


def decisive(study: StudyResults, comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Returns, for each reference, the cells of the robust accuracy that most arms have, of equals the strongest."""
    by_reference = [[cell for cell in comparisons if cell.reference == reference] for reference in study.references]
    return [cell for mine in by_reference for cell in mine if cell.metric == _deciding_metric(study, mine)]


def _deciding_metric(study: StudyResults, cells: Sequence[Comparison]) -> str:
    compared = {m: len({cell.baseline for cell in cells if cell.metric == m}) for m in study.metrics}
    strong = [m for m in (AUTOATTACK, APGD) if compared.get(m)]
    others = [m for m in compared if m not in (AUTOATTACK, APGD, NATURAL) and compared[m]]
    return max([*strong, *others], key=compared.__getitem__, default=NATURAL)
