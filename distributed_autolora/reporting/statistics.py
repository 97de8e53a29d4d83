"""How sure a measured accuracy is, and whether two differ.

A test that the numbers do not define (one seed, no variance) is None, never NaN.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, t, ttest_ind_from_stats


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the two-sided Wilson score interval of an accuracy, both ends in [0, 1].

    Source: Wilson (1927), without continuity correction, as SciPy computes it.

    Raises:
        ValueError: for counts that are no accuracy.
    """
    if not 0 <= correct <= total or total < 1:
        raise ValueError(f"{correct} correct of {total} is not an accuracy")
    interval = binomtest(correct, total).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def t_test(first: Sequence[float], second: Sequence[float], *, equal_variances: bool) -> float | None:
    """Returns the p-value of the unpaired two-sided t-test, None where it is undefined.

    Args:
        equal_variances: True: Student's test, as in the paper's Table 8; False: Welch's.
    """
    if min(len(first), len(second)) < 2 or (len(set(first)) == 1 and len(set(second)) == 1):
        return None
    moments = [(statistics.fmean(part), statistics.stdev(part), len(part)) for part in (first, second)]
    return float(ttest_ind_from_stats(*moments[0], *moments[1], equal_var=equal_variances).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Returns Holm's adjusted p-values in the order given; undefined tests stay undefined and do not count.

    Source: Holm (1979): the k-th smallest of m is multiplied by m - k + 1, made non-decreasing, and capped at 1.
    """
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for place, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * p))
        adjusted[index] = highest
    return adjusted


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Returns the two-sided p-value of McNemar's exact test; 1 where both models classify every image alike.

    Source: McNemar (1947), with the binomial distribution instead of its approximation.
    """
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


@dataclass(frozen=True)
class PairedInterval:
    """Difference of two accuracies, its confidence interval and the two-sided p-value of no difference; fractions."""

    difference: float
    low: float
    high: float
    p: float


def paired_bootstrap(differences: NDArray[np.float64], confidence: float = 0.95) -> PairedInterval | None:
    """Returns the interval of a mean difference by the hierarchical bootstrap over seeds and images.

    A replicate draws n - 1 of n seeds (so that few seeds are not taken for less spread) and, the same for all of them,
    as many images as there are, both with replacement. Its standard error is computed exactly, as of infinitely many
    replicates; the interval is Student's, with degrees of freedom between n - 1 (only seeds differ) and infinity (only
    images do). None for one seed, or where nothing varies.

    Args:
        differences: [seeds, images] of the same images for every seed: outcome of one model minus that of the other.

    Source: Rao and Wu (1988) for n - 1 of n; Owen (2007), "The pigeonhole bootstrap"; Hillis (2007) for the freedom.
    """
    seeds, images = differences.shape
    if seeds < 2:
        return None
    mean, by_seed, by_image = differences.mean(), differences.mean(1, keepdims=True), differences.mean(0)
    rest = differences - by_seed - by_image + mean
    of_seeds = by_seed.var() / (seeds - 1)
    variance = of_seeds + by_image.var() / images + rest.var() / (seeds - 1) / images
    if variance == 0:
        return None
    freedom = (seeds - 1) * (variance / of_seeds) ** 2 if of_seeds > 0 else math.inf
    error = math.sqrt(variance)
    half = t.ppf((1 + confidence) / 2, freedom) * error
    return PairedInterval(
        float(mean), float(mean - half), float(mean + half), 2 * float(t.sf(abs(mean) / error, freedom))
    )


def smallest_significant_difference(
    first: Sequence[float], second: Sequence[float], significance: float = 0.05
) -> float | None:
    """Returns the difference of means at which Student's test would just reach `significance` at this spread.

    None where the test is undefined.
    """
    if t_test(first, second, equal_variances=True) is None:
        return None
    freedom = len(first) + len(second) - 2
    squares = sum((len(part) - 1) * statistics.variance(part) for part in (first, second))
    error = math.sqrt(squares / freedom * (1 / len(first) + 1 / len(second)))
    return float(t.ppf(1 - significance / 2, freedom)) * error
