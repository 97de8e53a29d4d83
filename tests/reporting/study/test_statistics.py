"""Statistics of a study against hand computation, enumeration and formulas."""

import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import t as t_distribution

from distributed_autolora.reporting.statistics import (
    holm,
    mcnemar_exact,
    smallest_significant_difference,
    t_test,
)
from distributed_autolora.reporting.study.loading import load_study
from distributed_autolora.reporting.study.statistics import compare, corrected
from distributed_autolora.reporting.study.tables import _mean_and_spread
from tests.reporting.study import studies

FIRST, SECOND = [0.842, 0.845, 0.841], [0.83, 0.826, 0.835]


def test_holm_equals_a_computation_by_hand() -> None:
    # Sorted 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1 = 0.02, 0.03, 0.06, 0.04; never below the one before: 0.06 twice.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_holm_leaves_undefined_tests_undefined_and_does_not_count_them() -> None:
    assert holm([None, 0.02, 0.5, None]) == [None, 0.04, 0.5, None]
    assert holm([]) == []


@pytest.mark.parametrize(("b", "c"), [(0, 8), (3, 12), (7, 7), (5, 6), (1, 0), (0, 0)])
def test_mcnemar_equals_the_enumerated_binomial(b: int, c: int) -> None:
    """All outcomes of b + c fair coins that are no likelier than the one seen."""
    n = b + c
    weights = [math.comb(n, k) for k in range(n + 1)]
    expected = sum(weight for weight in weights if weight <= weights[b]) / 2**n
    assert mcnemar_exact(b, c) == pytest.approx(expected, abs=1e-12)


def test_student_and_welch_equal_their_formulas() -> None:
    n, difference = 3, statistics.fmean(FIRST) - statistics.fmean(SECOND)
    one, other = statistics.variance(FIRST), statistics.variance(SECOND)
    statistic = difference / math.sqrt((one + other) / n)  # the same for both where the sizes are equal
    freedom = (one + other) ** 2 / ((one**2 + other**2) / (n - 1))
    student, welch = (t_test(FIRST, SECOND, equal_variances=equal) for equal in (True, False))
    assert student == pytest.approx(2 * t_distribution.sf(statistic, 4), rel=1e-9)
    assert welch == pytest.approx(2 * t_distribution.sf(statistic, freedom), rel=1e-9)


@pytest.mark.parametrize(
    ("first", "second"), [([0.8], [0.7]), ([0.8], [0.7, 0.71]), ([0.8] * 3, [0.7] * 3), ([0.8] * 3, [0.8] * 3)]
)
def test_a_test_without_spread_or_with_one_seed_is_undefined(first: list[float], second: list[float]) -> None:
    assert t_test(first, second, equal_variances=True) is None
    assert t_test(first, second, equal_variances=False) is None
    assert smallest_significant_difference(first, second) is None


def test_a_spread_on_one_side_alone_defines_the_tests() -> None:
    p = t_test([0.8] * 3, SECOND, equal_variances=False)
    assert p is not None
    assert 0 < p < 1


def test_the_smallest_significant_difference_is_just_significant() -> None:
    needed = smallest_significant_difference(FIRST, SECOND, 0.01)
    assert needed is not None
    shift = needed - (statistics.fmean(FIRST) - statistics.fmean(SECOND))
    assert t_test([x + shift for x in FIRST], SECOND, equal_variances=True) == pytest.approx(0.01, rel=1e-6)


def test_the_standard_deviation_divides_by_n_minus_one() -> None:
    assert _mean_and_spread([0.8, 0.9]) == f"85.0 ± {10 / math.sqrt(2):.1f} (80.0, 90.0)"
    assert _mean_and_spread([0.8]) == "80.0"


def test_significance_needs_both_tests_after_correction(tmp_path: Path) -> None:
    cells = compare(load_study(studies.study(tmp_path)))
    assert len(cells) == 5  # natural and PGD-10 against both, AutoAttack against TWINS alone
    one = replace(cells[0], student=0.001, welch=0.06)
    alone, two = corrected([one])[0], corrected([replace(one, welch=0.04), replace(one, student=0.9, welch=0.03)])
    assert not alone.is_significant
    assert [cell.welch_holm for cell in two] == [pytest.approx(0.06), pytest.approx(0.06)]
    assert not any(cell.is_significant for cell in two)
    assert corrected([replace(one, welch=0.04)])[0].is_significant


def test_arms_are_compared_on_the_seeds_that_both_have(tmp_path: Path) -> None:
    folder = studies.study(tmp_path)
    whole = compare(load_study(folder))[0]
    first = (whole.baseline, "final", 0)
    kept = [entry for entry in studies.entries_of(folder) if (entry["arm"], entry["phase"], entry["seed"]) != first]
    studies.write_entries(folder, kept)
    part = compare(load_study(folder))[0]
    assert part.reference_values == whole.reference_values[1:]
    assert part.baseline_values == whole.baseline_values[1:]
