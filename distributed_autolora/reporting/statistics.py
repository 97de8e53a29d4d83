"""How sure a measured accuracy is."""

from __future__ import annotations


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the two-sided Wilson score interval of an accuracy, both ends in [0, 1].

    Source: Wilson (1927), without continuity correction, as SciPy computes it.

    Args:
        correct: number of images judged rightly, from 0 to `total`.
        total: number of images, at least 1.
        confidence: coverage in (0, 1).

    Raises:
        ValueError: for counts that are no accuracy.
    """
    from scipy.stats import binomtest

    if not 0 <= correct <= total or total < 1:
        raise ValueError(f"{correct} correct of {total} is not an accuracy")
    interval = binomtest(correct, total).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)
