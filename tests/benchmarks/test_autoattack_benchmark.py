"""The benchmark of AutoAttack judges the same images in every way that it times."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.autoattack import ONE, PLAIN, TWO, Flags, measure, show
from distributed_autolora.errors import UserError


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """Two real processes and two chunks, by the shortest part of AutoAttack."""
    return measure(Flags(attack="apgd-ce", chunk_size=2, rounds=1))


def test_two_workers_and_pyautoattack_itself_find_what_one_worker_finds(measured: dict[str, Any]) -> None:
    assert measured["same_outcomes"]
    assert list(measured["seconds_by_chunk"][ONE]) == list(measured["seconds_by_chunk"][TWO]) == [0, 1]
    assert list(measured["seconds_by_chunk"][PLAIN]) == [0]
    assert measured["images"] == 4
    assert 0 <= measured["robust"] <= measured["natural_correct"] <= 4


def test_ratios_are_those_of_the_seconds(measured: dict[str, Any]) -> None:
    seconds, by_chunk = measured["seconds_by_round"], measured["seconds_by_chunk"]
    assert measured["speedup_of_two"] == pytest.approx(seconds[ONE][0] / seconds[TWO][0])
    busy = sum(by_chunk[ONE].values()) / (sum(by_chunk[TWO].values()) / 2)
    assert measured["speedup_of_two_while_busy"] == pytest.approx(busy)
    assert measured["time_against_pyautoattack"] == pytest.approx(by_chunk[ONE][0] / by_chunk[PLAIN][0])
    assert measured["images_per_second"][TWO] == pytest.approx(4 / seconds[TWO][0])


def test_the_table_says_which_attack_ran(measured: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    show(measured)
    printed = capsys.readouterr().out
    assert printed.startswith("APGD-CE on shipped backbone, linear head: 4 test images in chunks of 2")
    assert "reduced" not in printed


def test_an_attack_that_is_no_part_of_autoattack_is_refused() -> None:
    with pytest.raises(UserError, match="pgd10"):
        measure(Flags(attack="pgd10"))
