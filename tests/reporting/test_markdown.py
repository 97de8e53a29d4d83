"""Lists in sentences stay lists, whatever their items hold."""

import pytest

from distributed_autolora.reporting.format import listed


@pytest.mark.parametrize(
    ("items", "text"),
    [
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (["a", "b", "c"], "a, b and c"),
        (["a, b"], "a, b"),
        (["a, b", "c"], "a, b; and c"),
        (["a", "b, c", "d"], "a; b, c; and d"),
    ],
)
def test_items_that_have_commas_are_told_apart_by_semicolons(items: list[str], text: str) -> None:
    assert listed(items) == text
