"""Sanity check of the attack that a run selects by: PGD-10 against APGD, with other losses and step sizes."""

from __future__ import annotations

from distributed_autolora.evaluation.attacks import Budget, label, parse, parts_for
from distributed_autolora.evaluation.masking_test import MASKING_LIMIT, least_share, overstates
from distributed_autolora.evaluation.sanity.rules import Subject, percent
from distributed_autolora.evaluation.sanity.search import Evidence
from distributed_autolora.records import SanityCheck

_WEAKER_STEPS = 10
_STRONGER = parse("apgd")[0]
_BUDGET = Budget(apgd_steps=20)
"""A fifth of the standard steps: a gap that they show is real, but they may miss one."""


def stronger(subject: Subject, evidence: Evidence) -> SanityCheck:
    """Few images that are robust to PGD-10 are broken by APGD-CE and then APGD-T, reduced to 20 steps.

    WARN when the images that PGD-10 alone leaves correct are significantly more than 2 % of all
    (`masking_test.overstates`): accuracy under PGD-10 is then no robust accuracy, and misled what selected by it.
    """
    n, classes = len(subject), subject.model(subject.x[:1]).shape[1]
    rows = (evidence.natural & evidence.clean.correct[:, _WEAKER_STEPS]).nonzero()[:, 0]
    left = int(subject.robust_to(parts_for(_STRONGER, classes), _BUDGET, rows).sum())
    broken = len(rows) - left
    detail = (
        f"PGD-{_WEAKER_STEPS} leaves {percent(len(rows), n)}, of these {label(_STRONGER, classes)} with "
        f"{_BUDGET.apgd_steps} steps {percent(left, n)}: more than {100 * least_share(broken, n):.1f} % are broken "
        f"(95 % confidence; limit {100 * MASKING_LIMIT:g} %)"
    )
    figures = {"pgd10": len(rows), "stronger": left, "total": n}
    return SanityCheck("stronger", "WARN" if overstates(broken, n) else "PASS", detail, figures)
