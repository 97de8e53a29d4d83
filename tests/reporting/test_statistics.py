"""The Wilson interval against its closed form and published values."""

import math

import pytest

from distributed_autolora.reporting.statistics import wilson_interval


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
