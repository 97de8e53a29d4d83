"""Intervals: Wilson's against its closed form and published values, the paired one against draws and known truth."""

import itertools
import math
import statistics

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm, t, ttest_rel

from distributed_autolora.reporting.statistics import paired_bootstrap, wilson_interval


@pytest.mark.parametrize(
    ("correct", "total", "expected"),
    [
        # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_interval_equals_published_values(correct: int, total: int, expected: tuple[float, float]) -> None:
    assert wilson_interval(correct, total) == pytest.approx(expected, abs=5e-5)


def test_wilson_interval_equals_its_formula_at_another_confidence() -> None:
    n, p, z = 1000, 0.833, 1.6448536269514722
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson_interval(833, 1000, confidence=0.9) == pytest.approx((centre - half, centre + half), abs=1e-12)


def test_wilson_interval_stays_inside_zero_and_one_at_the_edges() -> None:
    low, high = wilson_interval(50, 50)
    assert (high, 0.9 < low < 1) == (1.0, True)


@pytest.mark.parametrize(("correct", "total"), [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_counts_that_are_no_accuracy_are_refused(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match="is not an accuracy"):
        wilson_interval(correct, total)


def test_the_paired_interval_is_that_of_every_possible_replicate() -> None:
    """Two of three seeds and four of four images: all 9 x 256 draws, one after another."""
    d = [[1, 0, 0, -1], [1, 1, 0, 0], [1, 1, 0, 1]]
    means = [
        statistics.fmean(d[seed][image] for seed in seeds for image in images)
        for seeds in itertools.product(range(3), repeat=2)
        for images in itertools.product(range(4), repeat=4)
    ]
    error = statistics.pstdev(means)
    freedom = 2 * (error**2 / (statistics.variance(statistics.fmean(row) for row in d) / 3)) ** 2
    found = paired_bootstrap(np.array(d, float))
    assert found is not None
    assert found.difference == pytest.approx(5 / 12)
    half = t.ppf(0.975, freedom) * error
    assert (found.low, found.high) == pytest.approx((5 / 12 - half, 5 / 12 + half), rel=1e-9)
    assert found.p == pytest.approx(2 * t.sf(5 / 12 / error, freedom), rel=1e-9)


def test_where_only_seeds_differ_it_is_the_paired_t_test() -> None:
    by_seed = [0.02, 0.05, -0.01, 0.04]
    found = paired_bootstrap(np.repeat([[value] for value in by_seed], 7, axis=1))
    expected = ttest_rel(by_seed, [0.0] * 4)
    assert found is not None
    assert found.p == pytest.approx(float(expected.pvalue), rel=1e-6)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()), rel=1e-6)


def test_where_only_images_differ_more_seeds_tell_nothing_new() -> None:
    images = np.array([1.0] * 12 + [0.0] * 80 + [-1.0] * 8)
    two, five = (paired_bootstrap(np.stack([images] * seeds)) for seeds in (2, 5))
    assert two is not None
    assert two == five
    assert two.p == pytest.approx(2 * norm.sf(0.04 / (images.std() / 10)), rel=1e-6)


def test_without_a_second_seed_or_any_spread_there_is_no_interval() -> None:
    assert paired_bootstrap(np.eye(1, 9)) is None
    assert paired_bootstrap(np.ones((3, 9))) is None


@pytest.mark.parametrize(
    ("seeds", "spread", "low", "high"),
    [(3, 0.1, 0.94, 1), (2, 0.5, 0.85, 0.98), (3, 0.5, 0.88, 0.98), (5, 0.5, 0.92, 0.98)],
)
def test_the_paired_interval_covers_a_known_difference(seeds: int, spread: float, low: float, high: float) -> None:
    """Two models that are right where ability + seed + image + noise, all Gaussian, is above 0."""
    random, runs, images = np.random.default_rng(0), 600, 100

    def right(ability: float, difficulty: NDArray[np.float64]) -> NDArray[np.bool_]:
        seed = spread * random.normal(size=(runs, seeds, 1))
        return ability + seed + difficulty + 0.5 * random.normal(size=(runs, seeds, images)) > 0

    shared = random.normal(size=(runs, 1, images))
    differences = right(1.2, shared).astype(float) - right(1.0, shared)
    truth = np.diff(norm.cdf(np.array([1.0, 1.2]) / math.sqrt(1 + 0.25 + spread**2)))[0]
    found = [paired_bootstrap(run) for run in differences]
    covered = statistics.fmean(one is not None and one.low <= truth <= one.high for one in found)
    assert low <= covered <= high
