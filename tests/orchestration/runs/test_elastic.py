"""A run whose number of workers follows the nodes: a node that goes costs an epoch at most, one that comes is used.

What it computes does not depend on the number of workers but for rounding: test_shards.py shows it in float64. Here the
run is compared, bit for bit, with a run without Ray on as many workers in each epoch.
"""

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.elastic import nodes_come_and_go


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ela") as path:  # sockets live in there
        yield Path(path)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_node_goes_the_run_continues_alone_another_comes_and_is_used_and_no_bit_depends_on_that(folder: Path) -> None:
    found = nodes_come_and_go(folder, random.Random(0))
    assert [kill["victim"] for kill in found.kills] == ["node, for good", "a new node"]
    assert found.statuses == [0], (folder / "home.log").read_text(errors="replace")[-6000:]
    assert [verdict for verdict in found.verdicts if not verdict["is_equal"]] == []
