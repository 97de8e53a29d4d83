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
    """Tells whether the weaker attack surely overlooks more than `MASKING_LIMIT` of the images; args as above."""
    return least_share(fallen, total) > MASKING_LIMIT
