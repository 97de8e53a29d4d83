"""Test for gradient masking: does a stronger search on the same loss break significantly more images?

Another loss may find more on models that hide nothing: its gap is reported, and is no sign of masking.
"""

from __future__ import annotations

from scipy.stats import binom, binomtest

MASKING_LIMIT = 0.02
"""Largest acceptable gradient-masking gap; two strong attacks differ by less on ordinary models."""
LEAST_IMAGES = 25
"""Fewer images are too few to tell: two broken ones would already be 9 %."""
_CONFIDENCE = 0.95


def least_share(broken: int, total: int) -> float:
    """Returns the lower one-sided 95 % confidence bound of the share `broken / total`, in [0, 1].

    Source: Clopper and Pearson (1934): the probability at which so many or more would be seen in 5 % of the cases.
    Broken are images that are robust to the weaker attack only; `total`, all that were attacked, is at least 1.
    """
    interval = binomtest(broken, total, alternative="greater").proportion_ci(_CONFIDENCE, method="exact")
    return float(interval.low)


def overstates(broken: int, total: int) -> bool:
    """Returns whether the gradient-masking gap is above `MASKING_LIMIT` at 95 % confidence (see `least_share`).

    Checks are not corrected for their number: of many checks of a model at the limit up to one in twenty says so. Below
    `LEAST_IMAGES` images the answer is no: they are too few to tell.
    """
    return total >= LEAST_IMAGES and least_share(broken, total) > MASKING_LIMIT


def warns_from(total: int) -> int:
    """Returns the smallest number of broken images of `total`, at least `LEAST_IMAGES`, that `overstates` warns of."""
    return int(binom.isf(1 - _CONFIDENCE, total, MASKING_LIMIT)) + 1
