"""Accuracies are counts that add."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_autolora.records import AccuracyCount

COUNTS = st.integers(1, 1000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(shards=st.lists(COUNTS, min_size=1, max_size=8))
def test_shards_give_the_accuracy_of_the_whole_not_the_mean_of_accuracies(shards: list[tuple[int, int]]) -> None:
    whole = AccuracyCount(0, 0)
    for correct, total in shards:
        whole = whole + AccuracyCount(correct, total)
    correct, total = (sum(column) for column in zip(*shards, strict=True))
    assert (whole.correct, whole.total) == (correct, total)
    assert whole.accuracy == correct / total


def test_uneven_shards() -> None:
    assert (AccuracyCount(1, 1) + AccuracyCount(0, 3)).accuracy == pytest.approx(0.25)
