"""The curve of robust accuracy over epsilon, and its mean."""

from functools import partial
from itertools import pairwise

import pytest
import torch

from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.evaluation.attacks import parse
from distributed_autolora.evaluation.chunks import evaluate_chunk
from distributed_autolora.evaluation.curve import curve_epsilons, expected_robustness, robustness_curve
from distributed_autolora.records import AccuracyCount
from tests.evaluation.models import THREAT_MODEL, robust_model, shipped_images


def test_the_curve_falls_from_the_natural_accuracy_and_chunks_add() -> None:
    model, (x, y) = robust_model(), shipped_images(60)
    curve_of = partial(
        robustness_curve, model, threat_model=THREAT_MODEL, epsilons=(0.2, 0.05, 0.1), seed=3, num_steps=5
    )
    curve = curve_of(x, y)
    assert list(curve) == [0.0, 0.05, 0.1, 0.2]
    counts = [count.correct for count in curve.values()]
    with torch.no_grad():
        assert counts[0] == int((model(x).argmax(1) == y).sum())
    assert all(before >= after for before, after in pairwise(counts))
    assert counts[0] > counts[2] > counts[3]
    assert {count.total for count in curve.values()} == {60}
    halves = [curve_of(x[rows], y[rows], random_starts=0) for rows in (slice(0, 30), slice(30, 60), slice(0, 0))]
    whole = curve_of(x, y, random_starts=0)
    assert {radius: halves[0][radius] + halves[1][radius] + halves[2][radius] for radius in whole} == whole


def test_a_point_of_the_curve_is_pgd_at_that_epsilon() -> None:
    model, (x, y) = robust_model(), shipped_images(60)
    curve = robustness_curve(
        model, x, y, threat_model=THREAT_MODEL, epsilons=[0.1], seed=3, num_steps=10, random_starts=0
    )
    found = evaluate_chunk(model, x, y, threat_model=THREAT_MODEL, attacks=parse("pgd10"), seed=3)
    assert curve[0.1].correct == found["robust/pgd10"].sum()


def test_the_default_points_are_shares_of_epsilon_inside_the_unit_range() -> None:
    assert curve_epsilons(ThreatModel(epsilon=0.1)) == pytest.approx((0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2))
    assert max(curve_epsilons(ThreatModel(epsilon=0.6))) == pytest.approx(0.9)


def test_expected_robustness_is_the_mean_under_a_uniform_epsilon() -> None:
    def curve(**correct: int) -> dict[float, AccuracyCount]:
        return {int(name[1:]) / 10: AccuracyCount(count, 100) for name, count in correct.items()}

    assert expected_robustness(curve(e0=80, e2=80)) == pytest.approx(0.8)
    assert expected_robustness(curve(e0=100, e1=0)) == pytest.approx(0.5)
    # A straight line between points: a point on it changes nothing, wherever it is and in whatever order.
    assert expected_robustness(curve(e4=20, e0=100, e1=80)) == pytest.approx(expected_robustness(curve(e0=100, e4=20)))
    # (0.9 + 0.7) / 2 over a quarter of the range, (0.7 + 0.1) / 2 over the rest.
    assert expected_robustness(curve(e0=90, e1=70, e4=10)) == pytest.approx(0.25 * 0.8 + 0.75 * 0.4)
    for bad in (curve(e1=50, e2=40), curve(e0=50)):
        with pytest.raises(ValueError, match="needs 0 and a larger epsilon"):
            expected_robustness(bad)
