"""Sanity checks of PGD-10 by stronger attacks: one on the same loss, and then one on another loss."""

from __future__ import annotations

from dataclasses import dataclass

from distributed_autolora.evaluation.attacks import Budget, parse, parts_for
from distributed_autolora.evaluation.masking_test import LEAST_IMAGES, MASKING_LIMIT, least_share, overstates
from distributed_autolora.evaluation.sanity.rules import Subject, percent, slack
from distributed_autolora.evaluation.sanity.search import START_STEPS, Evidence
from distributed_autolora.records import SanityCheck, Status

_STRONGER = parse("apgd")[0]
_BUDGET = Budget(apgd_steps=20)
"""A fifth of the standard steps: a gap that they show is real, but they may miss one."""
_LARGE_LOSS_GAP = 0.06
"""The largest gap between PGD-10 and AutoAttack in the paper's Table 1."""


@dataclass(frozen=True)
class Stronger:
    """Images out of `total` that are robust to PGD-10, of these to APGD-CE, and of these to APGD-T (None: not run)."""

    total: int
    pgd: int
    same_loss: int
    other_loss: int | None


def stronger(subject: Subject, evidence: Evidence) -> Stronger:
    """Attacks what PGD-10 left by APGD-CE and then by APGD-T, both reduced to 20 steps."""
    rows = (evidence.natural & evidence.clean.correct[:, START_STEPS]).nonzero()[:, 0]
    left = rows[subject.robust_to(("apgd-ce",), _BUDGET, rows)]
    runs = "apgd-t" in parts_for(_STRONGER, subject.model(subject.x[:1]).shape[1])
    other = int(subject.robust_to(("apgd-t",), _BUDGET, left).sum()) if runs else None
    return Stronger(len(subject), len(rows), len(left), other)


def masking(found: Stronger) -> SanityCheck:
    """Few images that are robust to PGD-10 are broken by APGD-CE: the same loss with larger and more steps.

    WARN when they are significantly more than 2 % of all (`masking_test.overstates`): accuracy under PGD-10 is then no
    robust accuracy, and misled what selected by it.
    """
    broken = found.pgd - found.same_loss
    detail = (
        f"PGD-{START_STEPS} leaves {percent(found.pgd, found.total)}, of these APGD-CE with {_BUDGET.apgd_steps} "
        f"steps {percent(found.same_loss, found.total)}"
    )
    if found.total < LEAST_IMAGES:
        detail += f"; {found.total} images are too few to tell"
    else:
        least = f"{100 * least_share(broken, found.total):.1f} %"
        detail += f": more than {least} are broken (95 % confidence; limit {100 * MASKING_LIMIT:g} %)"
    status: Status = "WARN" if overstates(broken, found.total) else "PASS"
    return SanityCheck(
        "masking", status, detail, {"pgd10": found.pgd, "apgd_ce": found.same_loss, "total": found.total}
    )


def loss_gap(found: Stronger) -> SanityCheck:
    """How many more another loss breaks: 2 to 5 % on models that hide nothing, which is no sign of masking.

    WARN above 6 % of the images beyond `slack`: the cross-entropy then says little, as where it rounds to zero.
    """
    figures = {"apgd_ce": found.same_loss, "apgd_t": found.other_loss, "total": found.total}
    if found.other_loss is None:
        return SanityCheck("loss gap", "PASS", "not measured: APGD-T needs 4 classes", figures)
    large = found.same_loss - found.other_loss - slack(found.total) > _LARGE_LOSS_GAP * found.total
    detail = (
        f"of {percent(found.same_loss, found.total)} APGD-T with {_BUDGET.apgd_steps} steps leaves "
        f"{percent(found.other_loss, found.total)}" + ("" if large else ": a stronger loss, no sign of masking")
    )
    return SanityCheck("loss gap", "WARN" if large else "PASS", detail, figures)
