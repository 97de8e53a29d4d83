"""The benchmark of AutoAttack evaluates the same images in every way that it times."""

import pytest

from benchmarks.autoattack import ONE, PLAIN, TWO, Flags, measure
from distributed_autolora.errors import UserError


def test_two_workers_and_pyautoattack_itself_find_the_same_images_robust_as_one_worker() -> None:
    """Two real processes and two chunks, by the shortest part of AutoAttack."""
    measured = measure(Flags(attack="apgd-ce", chunk_size=2, rounds=1))
    assert measured["same_outcomes"]
    assert measured["attack"] == "APGD-CE"
    assert 0 <= measured["robust"] <= measured["images"] == 4
    seconds, by_chunk = measured["seconds_by_round"], measured["seconds_by_chunk"]
    assert measured["speedup_of_two"] == pytest.approx(seconds[ONE][0] / seconds[TWO][0])
    assert measured["speedup_of_two_while_busy"] == pytest.approx(2 * sum(by_chunk[ONE]) / sum(by_chunk[TWO]))
    assert measured["time_against_pyautoattack"] == pytest.approx(by_chunk[ONE][0] / by_chunk[PLAIN][0])
    assert measured["images_per_second"][TWO] == pytest.approx(4 / seconds[TWO][0])


def test_an_attack_that_is_no_part_of_autoattack_is_refused() -> None:
    with pytest.raises(UserError, match="pgd10"):
        measure(Flags(attack="pgd10"))
