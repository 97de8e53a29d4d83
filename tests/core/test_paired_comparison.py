"""Epochs compared image by image: against scipy, a slow replay, and the laws the rule is made for."""

import math
from fractions import Fraction
from statistics import fmean

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from distributed_autolora.core.paired_comparison import StrongerCheck, exceeds
from distributed_autolora.core.schedules import RobustAccuracyHalving


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[list[bool], list[bool] | None]]:
    """Draws (outcomes, fallen) of some epochs; some are checked, and some histories have no check at all."""
    n = draw(st.integers(2, 12))
    outcomes = st.lists(st.booleans(), min_size=n, max_size=n)
    return draw(st.lists(st.tuples(outcomes, st.none() | outcomes), min_size=1, max_size=30))


def accuracy(outcomes: list[bool]) -> float:
    return fmean(map(float, outcomes))


def check_of(outcomes: list[bool], broken: list[bool] | None, images: int) -> StrongerCheck | None:
    if broken is None:
        return None
    fallen = [i < images and right and bad for i, (right, bad) in enumerate(zip(outcomes, broken, strict=True))]
    return StrongerCheck(torch.tensor(fallen), images)


def played(epochs: list[list[bool]], interval: int = 4) -> list[tuple[bool, bool, bool]]:
    """Returns (kept, halved, restored) for each epoch of a run without checks."""
    return played_with_checks([(epoch, None) for epoch in epochs], images=1, interval=interval)


def played_with_checks(
    epochs: list[tuple[list[bool], list[bool] | None]], images: int, interval: int = 4
) -> list[tuple[bool, bool, bool]]:
    """Returns (kept, halved, restored) for each epoch."""
    schedule = RobustAccuracyHalving(1.0, interval, "paired", min_lr=0.0)
    decisions = [
        schedule.step(accuracy(outcomes), outcomes, check_of(outcomes, broken, images)) for outcomes, broken in epochs
    ]
    return [(one.improved, one.halved, one.restore_best) for one in decisions]


Scores = list[Fraction]


def is_above(first: list[Scores], second: list[Scores], standard_errors: float = 1.0) -> bool:
    """More than so many standard errors of the mean difference above; both are as many epochs of the same images.

    The variance is taken about no difference, as McNemar's statistic does.
    """
    means = [sum(sum(epoch) for epoch in part) / Fraction(len(part[0])) for part in (first, second)]
    changes = [sum(epoch[i] for epoch in first) - sum(epoch[i] for epoch in second) for i in range(len(first[0]))]
    squared_error = sum(change**2 for change in changes) / Fraction(len(changes) ** 2)
    return means[0] > means[1] and (means[0] - means[1]) ** 2 > Fraction(standard_errors) ** 2 * squared_error


def estimate(outcomes: list[bool], broken: list[bool] | None, images: int) -> Scores:
    scores = [Fraction(right) for right in outcomes]
    if broken is not None:
        for i in range(images):
            scores[i] -= Fraction(len(outcomes), images) * (outcomes[i] and broken[i])
    return scores


def replayed(
    epochs: list[tuple[list[bool], list[bool] | None]], images: int, interval: int = 4
) -> list[tuple[bool, bool, bool]]:
    """The rule once more, every epoch from the whole history, with fractions and scipy."""
    found: list[tuple[bool, bool, bool]] = []
    right = [[Fraction(value) for value in outcomes] for outcomes, _ in epochs]
    checks: dict[int, list[bool]] = {}
    for t in range(1, len(epochs) + 1):
        level, broken = norm.isf(0.05 / t), epochs[t - 1][1]
        kept_before = [e for e in range(t - 1) if found[e][0]]
        collapsed = bool(kept_before) and is_above([right[kept_before[-1]]], [right[t - 1]], level)
        if broken is not None and (checks or not collapsed):
            checks[t - 1] = broken
        candidates = list(checks) or list(range(t))
        scores = {e: estimate(epochs[e][0], checks.get(e), images) for e in candidates}
        best = max(candidates, key=lambda e: sum(scores[e]))
        is_kept = t - 1 in candidates and not is_above([scores[best]], [scores[t - 1]])
        kept = t - 1 if is_kept else max(e for e in candidates if e < t - 1 and found[e][0])
        halved = t % interval == 0 and not is_above(right[t - 2 : t], right[t - 4 : t - 2])
        is_better = t - 1 in candidates and is_above([scores[kept]], [scores[t - 1]], level)
        found.append((is_kept, halved, halved and is_better))
    return found


@settings(max_examples=300, deadline=None)
@given(histories(), st.integers(1, 12))
def test_the_rule_is_what_a_slow_replay_of_the_whole_history_says(
    epochs: list[tuple[list[bool], list[bool] | None]], images: int
) -> None:
    images = min(images, len(epochs[0][0]))
    assert played_with_checks(epochs, images) == replayed(epochs, images)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200), st.floats(0.1, 4))
def test_of_two_epochs_it_is_mcnemars_statistic_that_decides(
    pairs: list[tuple[bool, bool]], standard_errors: float
) -> None:
    first, second = (torch.tensor(values).long() for values in zip(*pairs, strict=True))
    won, lost = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    statistic = (won - lost) / math.sqrt(won + lost) if won + lost else 0.0
    assume(abs(statistic - standard_errors) > 1e-9)
    assert exceeds(first, second, standard_errors) == (statistic > standard_errors)


def test_a_state_that_hides_its_gradients_is_neither_kept_nor_restored() -> None:
    """One epoch looks better by 6 points of 250 and a fifth of its 50 checked images falls; another is honest."""
    honest, hiding = [i % 250 < 205 for i in range(250)], [i % 250 < 220 for i in range(250)]
    none, fifth = [False] * 250, [i % 5 == 0 for i in range(250)]
    before: list[tuple[list[bool], list[bool] | None]] = [(honest, None)] * 3
    last = played_with_checks([*before, (honest, none), *before, (hiding, fifth)], images=50)[-1]
    assert last == (False, False, False)
    assert played_with_checks([*before, (honest, none), *before, (hiding, none)], images=50)[-1][0]
    turned = played_with_checks([*before, (hiding, fifth), *before, (honest, none)], images=50)
    assert [kept for kept, _, _ in turned[3:]] == [True, False, False, False, True], "the first check is kept"
    assert turned[-1] == (True, True, False)
    unchecked = played([outcomes for outcomes, _ in [*before, (hiding, fifth), *before, (honest, none)]])
    assert unchecked[-1] == (False, True, True), "without checks it is restored"


def test_a_collapsed_state_is_not_kept_because_it_is_the_first_that_was_checked() -> None:
    rising = [[i < 60 + 5 * t for i in range(100)] for t in range(3)]
    collapsed = [i < 30 for i in range(100)]
    history: list[tuple[list[bool], list[bool] | None]] = [*((one, None) for one in rising), (collapsed, [False] * 100)]
    assert played_with_checks(history, images=20)[-1] == (False, True, True)
    dip = [i < 68 for i in range(100)]
    assert played_with_checks([*history[:3], (dip, [False] * 100)], images=20)[-1] == (True, False, False)


def test_states_that_were_not_checked_are_kept_only_until_one_was() -> None:
    right = [i % 100 < 70 for i in range(100)]
    history: list[tuple[list[bool], list[bool] | None]] = [(right, None), (right, None), (right, [False] * 100)]
    kept = [one[0] for one in played_with_checks([*history, (right, None), (right, [False] * 100)], images=20)]
    assert kept == [True, True, True, False, True]


def test_a_collapse_is_halved_and_restored_and_a_dip_is_not() -> None:
    rising = [[i < 50 + 5 * t for i in range(100)] for t in range(8)]
    assert not any(halved for _, halved, _ in played(rising))
    collapsed = [[i < 30 for i in range(100)]] * 4
    assert played(rising + collapsed)[11] == (False, True, True)
    dip = [[(i + 7 * t) % 100 < 83 for i in range(100)] for t in range(4)]
    assert played(rising + dip)[11][1:] == (True, False)


def test_a_lucky_epoch_is_not_kept_for_good() -> None:
    """One epoch of noise above its neighbours must not be what is deployed when later ones are as good."""
    epochs = [[(i * 7 + t * 13) % 100 < 70 for i in range(100)] for t in range(10)]
    epochs[2] = [(i * 7) % 100 < 73 for i in range(100)]
    assert played(epochs)[-1][0] is True


def test_other_rules_ignore_outcomes() -> None:
    accuracies = [0.5, 0.6, 0.4, 0.7, 0.6, 0.65, 0.62, 0.61, 0.6, 0.59]
    for rule in ("released", "apgd"):
        plain, given_outcomes = RobustAccuracyHalving(rule=rule), RobustAccuracyHalving(rule=rule)
        assert [plain.step(a) for a in accuracies] == [given_outcomes.step(a, [True, False]) for a in accuracies]


@pytest.mark.parametrize(("min_lr", "stops"), [(0.5, False), (0.51, True)])
def test_training_stops_only_below_the_least_learning_rate(min_lr: float, stops: bool) -> None:
    schedule = RobustAccuracyHalving(1.0, 1, "paired", min_lr=min_lr)
    decisions = [schedule.step(0.5, [True, False]) for _ in range(2)]
    assert [(one.lr, one.stop) for one in decisions] == [(1.0, False), (0.5, stops)]
