"""Epochs compared image by image: against scipy, a slow replay, and the laws the rule is made for."""

from __future__ import annotations

from fractions import Fraction
from statistics import fmean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from distributed_autolora.core.paired import p_value_of_being_better
from distributed_autolora.core.schedules import RobustAccuracyHalving

EPOCHS = st.integers(2, 12).flatmap(
    lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=30)
)


def accuracy(outcomes: list[bool]) -> float:
    return fmean(map(float, outcomes))


def played(epochs: list[list[bool]], interval: int = 4) -> list[tuple[bool, bool, bool]]:
    """Returns (kept, halved, restored) for each epoch."""
    schedule = RobustAccuracyHalving(1.0, interval, "paired", min_lr=0.0)
    decisions = [schedule.step(accuracy(epoch), epoch) for epoch in epochs]
    return [(one.improved, one.halved, one.restore_best) for one in decisions]


def is_above(first: list[list[bool]], second: list[list[bool]]) -> bool:
    """More than a standard error above, by its definition; both are as many epochs of the same images."""
    counts = [[sum(epoch[i] for epoch in part) for i in range(len(first[0]))] for part in (first, second)]
    differences = [Fraction(a - b) for a, b in zip(*counts, strict=True)]
    n, mean = len(differences), sum(differences) / len(differences)
    if n == 1:
        return False
    return mean > 0 and mean**2 > sum((d - mean) ** 2 for d in differences) / (n - 1) / n


def replayed(epochs: list[list[bool]], interval: int = 4) -> list[tuple[bool, bool, bool]]:
    """The rule once more, every epoch from the whole history, with fractions and scipy."""
    found, kept = [], epochs[0]
    for t in range(1, len(epochs) + 1):
        now = epochs[t - 1]
        is_kept = not is_above([max(epochs[:t], key=accuracy)], [now])
        kept = now if is_kept else kept
        halved = t % interval == 0 and not is_above(epochs[t - 2 : t], epochs[t - 4 : t - 2])
        won = sum(a and not b for a, b in zip(kept, now, strict=True))
        lost = sum(b and not a for a, b in zip(kept, now, strict=True))
        p = binomtest(won, won + lost, alternative="greater").pvalue if won + lost else 1.0
        found.append((is_kept, halved, halved and p < 0.05 / t))
    return found


@settings(max_examples=200, deadline=None)
@given(EPOCHS)
def test_the_rule_is_what_a_slow_replay_of_the_whole_history_says(epochs: list[list[bool]]) -> None:
    assert played(epochs) == replayed(epochs)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_p_values_are_scipys(pairs: list[tuple[bool, bool]]) -> None:
    first, second = (torch.tensor(values).long() for values in zip(*pairs, strict=True))
    won, lost = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    expected = binomtest(won, won + lost, alternative="greater").pvalue if won + lost else 1.0
    assert p_value_of_being_better(first, second) == pytest.approx(expected, rel=1e-9)


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


def test_rule_paired_refuses_an_accuracy_alone() -> None:
    with pytest.raises(ValueError, match="outcome of each validation image"):
        RobustAccuracyHalving(rule="paired").step(0.5)


def test_other_rules_ignore_outcomes() -> None:
    accuracies = [0.5, 0.6, 0.4, 0.7, 0.6, 0.65, 0.62, 0.61, 0.6, 0.59]
    for rule in ("released", "apgd"):
        plain, given_outcomes = RobustAccuracyHalving(rule=rule), RobustAccuracyHalving(rule=rule)
        assert [plain.step(a) for a in accuracies] == [given_outcomes.step(a, [True, False]) for a in accuracies]
