"""When a stronger attack breaks so many more images that the weaker one's accuracy may not be believed."""

from __future__ import annotations

MASKING_LIMIT = 0.02
"""Share of the images that a weaker attack may overlook; two strong attacks differ by less on ordinary models."""
_CONFIDENCE = 0.95


def least_share(fallen: int, total: int) -> float:
    """Returns the lower one-sided 95 % confidence bound of a share, in [0, 1].

    Source: Clopper and Pearson (1934): the probability at which so many or more would be seen in 5 % of the cases.

    Args:
        fallen: images that withstand the weaker attack only, from 0 to `total`.
        total: images that met both, at least 1.
    """
    from scipy.stats import binomtest

    interval = binomtest(fallen, total, alternative="greater").proportion_ci(_CONFIDENCE, method="exact")
    return float(interval.low)


def overstates(fallen: int, total: int) -> bool:
    """Tells whether the weaker attack overlooks more than `MASKING_LIMIT` of the images, at 95 % confidence.

    Each check is judged by itself: of many checks of a model at the limit up to one in twenty says so.

    Args:
        fallen: images that withstand the weaker attack only, from 0 to `total`.
        total: images that met both, at least 1.
    """
    return least_share(fallen, total) > MASKING_LIMIT


def warns_from(total: int) -> int:
    """Returns the smallest number of fallen images that `overstates` calls too many: what a check can see at all.

    Args:
        total: images that met both, at least 1.
    """
    from scipy.stats import binom

    # That the bound is above the limit means that at the limit so many or more are seen in less than 5 % of the cases.
    return int(binom.isf(1 - _CONFIDENCE, total, MASKING_LIMIT)) + 1
