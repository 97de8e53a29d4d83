"""The automatic learning rate on the traces of the released code and against a slow replay; the loss weights."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_autolora.core.schedules import LossWeights, RobustAccuracyHalving, StepDecay
from tests.reference.slow_schedules import SlowDecision, slow_halving

S1 = [20, 24, 27, 29, 31, 32, 33, 34, 35, 35.5, 35.2, 35.8, 36.1, 36.0, 36.3, 36.2, 36.4]
S1 += [30, 31, 32, 33, 37, 37.2, 37.5]
S2 = [22, 25, 28, 27, 29, 30, 31, 32, 33, 28, 29, 30, 31, 32, 32.5, 32.8, 33.5]
S2 += [33.4, 33.6, 33.3, 33.7, 33.6, 33.8, 33.9]
FALLING = [60 - epoch for epoch in range(60)]


def played(
    accuracies: list[float],
    *,
    initial_lr: float = 0.01,
    interval: int = 4,
    rule: str = "released",
    min_lr: float = 1e-5,
) -> list[SlowDecision]:
    """Feeds the schedule until it stops; `best_epoch` is the last epoch that it called an improvement."""
    schedule = RobustAccuracyHalving(initial_lr=initial_lr, interval=interval, rule=rule, min_lr=min_lr)
    decisions, best_epoch = [], 0
    for epoch, accuracy in enumerate(accuracies, start=1):
        decision = schedule.step(accuracy)
        best_epoch = epoch if decision.improved else best_epoch
        assert decision.restore_best == decision.halved
        decisions.append(SlowDecision(decision.lr, decision.halved, decision.improved, decision.stop, best_epoch))
        if decision.stop:
            break
    return decisions


def lr_during(decisions: list[SlowDecision], initial_lr: float = 0.01) -> list[float]:
    return [initial_lr, *(decision.lr for decision in decisions[:-1])]


def restores(decisions: list[SlowDecision]) -> dict[int, int]:
    """Returns {epoch after which the rate was halved: epoch whose model was restored}."""
    return {epoch: decision.best_epoch for epoch, decision in enumerate(decisions, start=1) if decision.halved}


TRACES = [
    ("S1", S1, "released", [0.01] * 17 + [0.005] * 4 + [0.0025] * 3, {17: 17, 21: 17}),
    ("S1", S1, "apgd", [0.01] * 17 + [0.005] * 7, {17: 17}),
    ("S2", S2, "released", [0.01] * 13 + [0.005] * 8 + [0.0025] * 3, {13: 9, 21: 21}),
    ("S2", S2, "apgd", [0.01] * 13 + [0.005] * 8 + [0.0025] * 3, {13: 9, 21: 21}),
]


@pytest.mark.parametrize(("name", "accuracies", "rule", "rates", "restored"), TRACES)
def test_a_trace_of_the_released_code(
    name: str, accuracies: list[float], rule: str, rates: list[float], restored: dict[int, int]
) -> None:
    decisions = played([accuracy / 100 for accuracy in accuracies], rule=rule)
    assert lr_during(decisions) == pytest.approx(rates), name
    assert restores(decisions) == restored, name
    assert not any(decision.stop for decision in decisions)


@pytest.mark.parametrize("rule", ["released", "apgd"])
def test_a_falling_accuracy_halves_at_every_decision_and_stops_after_epoch_41(rule: str) -> None:
    decisions = played([accuracy / 100 for accuracy in FALLING], rule=rule)
    assert restores(decisions) == dict.fromkeys(range(5, 42, 4), 1)
    assert len(decisions) == 41
    assert [decision.stop for decision in decisions] == [False] * 40 + [True]
    assert decisions[-1].lr == pytest.approx(0.01 / 1024)


def test_a_first_accuracy_of_zero_is_the_best_so_far() -> None:
    schedule = RobustAccuracyHalving()
    assert schedule.step(0.0).improved
    assert not schedule.step(0.0).improved


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    steps=st.lists(st.integers(0, 6), min_size=1, max_size=60),
    rule=st.sampled_from(["released", "apgd"]),
    interval=st.integers(1, 6),
    initial_lr=st.sampled_from([0.01, 0.1, 1e-4, 4e-5]),
    min_lr=st.sampled_from([1e-5, 2.5e-5, 1e-3]),
)
def test_any_history_gives_the_decisions_of_the_slow_replay(
    steps: list[int], rule: str, interval: int, initial_lr: float, min_lr: float
) -> None:
    """Accuracies from seven values, so that ties and equal bests are common."""
    accuracies = [value / 6 for value in steps]
    expected = slow_halving(accuracies, initial_lr=initial_lr, interval=interval, rule=rule, min_lr=min_lr)
    assert played(accuracies, initial_lr=initial_lr, interval=interval, rule=rule, min_lr=min_lr) == expected


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    changes=st.lists(st.sampled_from([-2, 0, 1, 1, 1]), min_size=20, max_size=59),
    rule=st.sampled_from(["released", "apgd"]),
)
def test_mostly_rising_histories_give_the_decisions_of_the_slow_replay(changes: list[int], rule: str) -> None:
    """Here the second condition decides, and the two rules differ."""
    accuracies = [0.5]
    for change in changes:
        accuracies.append(accuracies[-1] + change / 200)
    expected = slow_halving(accuracies, initial_lr=0.01, interval=4, rule=rule, min_lr=1e-5)
    assert played(accuracies, rule=rule) == expected


@pytest.mark.parametrize(("epochs", "first", "second"), [(60, 30, 50), (12, 6, 10), (6, 3, 5)])
def test_step_decay_divides_by_ten_after_50_and_83_per_cent(epochs: int, first: int, second: int) -> None:
    schedule = StepDecay(0.02, epochs)
    decisions = [schedule.step(0.5) for _ in range(epochs)]
    rates = [0.02, *(decision.lr for decision in decisions[:-1])]
    expected = [0.02] * first + [0.002] * (second - first) + [0.0002] * (epochs - second)
    assert rates == pytest.approx(expected)
    assert not any(decision.restore_best or decision.stop for decision in decisions[:-1])
    assert not decisions[-1].restore_best


@pytest.mark.parametrize(("decay_at", "full", "tenth"), [((0.75, 0.9), 6, 1), ((0.5,), 4, 4), ((), 8, 0)])
def test_step_decay_has_the_full_rate_for_the_share_it_is_given(
    decay_at: tuple[float, ...], full: int, tenth: int
) -> None:
    schedule = StepDecay(1.0, 8, decay_at)
    rates = [1.0, *(schedule.step(0.5).lr for _ in range(7))]
    assert rates == pytest.approx([1.0] * full + [0.1] * tenth + [0.01] * (8 - full - tenth))


def test_step_decay_knows_the_best_epoch() -> None:
    schedule = StepDecay(0.02, 10)
    accuracies = [0.0, 0.3, 0.3, 0.2, 0.4]
    assert [schedule.step(accuracy).improved for accuracy in accuracies] == [True, True, False, False, True]


@pytest.mark.parametrize(
    ("accuracy", "alpha", "natural_weight", "kl_weight"),
    [
        (0.0, 1.0, 1.0, 0.0),
        (0.1, 1.0, 0.9, 0.6),
        (0.75, 1.0, 0.25, 4.5),
        (1.0, 1.0, 0.0, 6.0),
        (0.25, 0.5, 0.5, 3.0),
        (0.5, 2.0, 0.75, 1.5),
        (0.5, 3.0, 0.875, 0.75),
    ],
)
def test_loss_weights_of_equations_6_and_7(
    accuracy: float, alpha: float, natural_weight: float, kl_weight: float
) -> None:
    weights = LossWeights.from_natural_accuracy(accuracy, alpha=alpha)
    assert weights.natural_weight == pytest.approx(natural_weight)
    assert weights.kl_weight == pytest.approx(kl_weight)


def test_loss_weights_scale_with_the_largest_kl_weight() -> None:
    assert LossWeights.from_natural_accuracy(0.5, kl_weight_max=4.0).kl_weight == pytest.approx(2.0)
