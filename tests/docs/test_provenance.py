"""Every result in docs/ says which version and config made it, and which results the present recipe no longer makes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from distributed_autolora.config.recipes import recipe

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
MADE_WITH: dict[str, dict[str, Any]] = json.loads((RESULTS / "made_with.json").read_text())


def test_every_result_says_what_made_it() -> None:
    assert set(MADE_WITH) == {folder.name for folder in RESULTS.iterdir() if folder.is_dir()}
    for name, facts in MADE_WITH.items():
        assert set(facts) == {"version", "commit", "recipe", "digest", "differs"}, name
        assert re.fullmatch(r"\d+\.\d+\.\d+", facts["version"]), name


@pytest.mark.parametrize("name", [name for name, facts in MADE_WITH.items() if facts["recipe"]])
def test_a_result_whose_recipe_has_changed_since_says_so_beside_its_link(name: str) -> None:
    """A recipe that changes fails here: make the result again, or say in `differs` what it was made with."""
    facts = MADE_WITH[name]
    is_current = recipe(facts["recipe"]).digest() == facts["digest"]
    assert is_current == (facts["differs"] is None), f"{name}: recipe {facts['recipe']} is not what made it"
    if not is_current:
        rows = [line for line in (RESULTS / "README.md").read_text().splitlines() if f"]({name}/" in line]
        assert any(facts["differs"] in line for line in rows), f"{name}: {facts['differs']}"
