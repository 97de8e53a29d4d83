"""The benchmark of two workers measures what it says."""

from typing import Any

import pytest

from benchmarks.collectives import Turn
from benchmarks.workers import HALF, ONE, PAIR, TWO, Flags, measure, seconds_a_batch


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """A tiny run: four real processes, two of them in a gloo group."""
    return measure(Flags(batch=8, steps=1, rounds=1))


@pytest.mark.long
def test_the_attack_has_no_collective_and_a_step_reduces_its_gradients_once(measured: dict[str, Any]) -> None:
    found = measured["collectives"]
    assert found["in the attack"] == {"number": 0, "bytes": 0, "milliseconds": 0}
    assert found["reductions of gradients and of running statistics"]["number"] == 1
    gathers = found["gathers of batch norm's sums"]["number"]
    assert gathers == 4 * 15 - 1, "15 batch norms, two forwards and their backwards, but for the first natural one"
    assert found["in the step"]["number"] == gathers + 1
    assert len(found) == 4, "no other kind of collective"


@pytest.mark.long
def test_speedups_are_those_of_the_rounds_and_multiply_within_one(measured: dict[str, Any]) -> None:
    speedups, seconds = measured["speedups"], measured["seconds_a_global_batch_by_round"]
    whole, *factors = speedups.values()
    assert whole == pytest.approx(seconds[ONE][0] / seconds[TWO][0])
    assert whole == pytest.approx(factors[0] * factors[1] * factors[2])


def test_workers_that_wait_for_each_other_are_as_slow_as_the_slower_and_others_add_their_rates() -> None:
    one_second, two_seconds = Turn(1.0, {}), Turn(2.0, {})
    assert seconds_a_batch(TWO, [one_second, two_seconds]) == 2.0
    assert seconds_a_batch(HALF, [one_second]) == 2.0, "a whole batch has two halves"
    assert seconds_a_batch(PAIR, [one_second, one_second]) == 1.0
    assert seconds_a_batch(PAIR, [one_second, two_seconds]) == pytest.approx(1 / (0.5 / 1 + 0.5 / 2))
