"""The names of docs/api.md can be imported, and its example is a step of AutoLoRa."""

import re
from importlib import import_module
from typing import Any

import torch

from tests.docs.checking import ROOT

PAGE = (ROOT / "docs" / "api.md").read_text()


def test_every_listed_name_can_be_imported_and_says_what_it_is() -> None:
    names = re.findall(r"^\| `([\w.]+)` \|", PAGE, re.MULTILINE)
    assert len(names) == len(set(names)) == PAGE.count("\n| `") >= 25
    for name in names:
        module, _, attribute = name.rpartition(".")
        found = getattr(import_module(module), attribute)
        assert isinstance(found, dict) or found.__doc__, name


def test_the_readme_s_lines_are_examples_of_the_page_which_tests_run() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert {line for line in example.splitlines() if line} <= set(PAGE.splitlines())


def test_the_example_takes_a_step_that_moves_the_backbone_and_the_branch() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.partition("## Names")[2], re.DOTALL)
    start, _, step = example.partition("\nterms = ")
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(start.replace("num_steps=10", "num_steps=1"), names)
    before = {name: value.detach().clone() for name, value in names["objective"].named_parameters()}
    exec(f"terms = {step}", names)
    moved = {name for name, value in names["objective"].named_parameters() if not torch.equal(value, before[name])}
    assert torch.isfinite(names["terms"].total)
    assert {"backbone.backbone.conv1.weight", "backbone.backbone.fc.weight"} <= moved
    assert {name for name in moved if name.startswith("branch.")} == {
        name
        for name in before
        if name.startswith("branch.b.")  # B starts at zero: A gets no gradient yet
    }
