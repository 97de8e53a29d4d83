"""Sanity check of what a run steers by: PGD-10 beside two attacks that choose their own steps and other losses."""

from __future__ import annotations

from torch import Tensor

from distributed_autolora.evaluation.attacks import Budget, label, parse, parts_for
from distributed_autolora.evaluation.autoattack import run_parts
from distributed_autolora.evaluation.masking_test import MASKING_LIMIT, least_share, overstates
from distributed_autolora.evaluation.sanity.rules import SanityCheck, Subject, percent
from distributed_autolora.evaluation.sanity.search import Evidence
from distributed_autolora.evaluation.trajectories import in_batches

_WEAKER_STEPS = 10
_STRONGER = parse("apgd")[0]
_BUDGET = Budget(apgd_steps=20)
"""A fifth of the standard's steps: a gap that they show is there, one that they miss may be."""


def stronger(subject: Subject, evidence: Evidence) -> SanityCheck:
    """PGD-10 from the clean image overlooks few images that APGD-CE and then APGD-T break, reduced to 20 steps.

    WARN when the images that PGD-10 alone leaves right are surely more than 2 % of all (`masking_rule.overstates`): an
    accuracy under PGD-10 is then no robust accuracy, and what steered by it was misled.
    """
    n, classes = len(subject), subject.model(subject.x[:1]).shape[1]
    rows = (evidence.natural & evidence.clean.correct[:, _WEAKER_STEPS]).nonzero()[:, 0]
    left = int(_withstand(subject, rows, classes).sum()) if len(rows) else 0
    fallen = len(rows) - left
    detail = (
        f"PGD-{_WEAKER_STEPS} leaves {percent(len(rows), n)}, of these {label(_STRONGER, classes)} with "
        f"{_BUDGET.apgd_steps} steps {percent(left, n)}: surely more than {100 * least_share(fallen, n):.1f} % fall "
        f"(limit {100 * MASKING_LIMIT:g} %)"
    )
    figures = {"pgd10": len(rows), "stronger": left, "total": n}
    return SanityCheck("stronger", "WARN" if overstates(fallen, n) else "PASS", detail, figures)


def _withstand(subject: Subject, rows: Tensor, num_classes: int) -> Tensor:
    def withstood(x: Tensor, y: Tensor) -> Tensor:
        outcome = run_parts(
            subject.model,
            x,
            y,
            threat_model=subject.threat_model,
            parts=parts_for(_STRONGER, num_classes),
            num_classes=num_classes,
            seed=subject.seed,
            budget=_BUDGET,
        )
        return outcome.broken_by == len(outcome.parts)

    return in_batches(withstood, subject.batch_size, subject.x[rows], subject.y[rows])
