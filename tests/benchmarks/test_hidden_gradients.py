"""The program that judges every epoch writes what it says, and counts what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.hidden_gradients import VARIANTS, hiding


def test_epochs_that_lose_five_points_hide_and_are_counted_by_their_rate() -> None:
    seen = [(0.01, 0.80, 0.75), (0.01, 0.80, 0.76), (0.001, 0.90, 0.60), (0.001, 0.90, 0.90)]
    epochs = [{"lr": lr, "pgd10": weak, "apgd-ce": strong} for lr, weak, strong in seen]
    assert hiding({"variant": "a", "seed": 3, "epochs": epochs}) == ("a, seed 3", "1 of 2", "1 of 2")


@pytest.mark.long
def test_every_epoch_of_every_variant_is_judged(tmp_path: Path) -> None:
    output = tmp_path / "hidden.json"
    command = [sys.executable, "benchmarks/hidden_gradients.py", "--epochs", "2", "--images", "5"]
    done = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True, check=True)
    runs = json.loads(output.read_text())["runs"]
    assert [run["variant"] for run in runs] == list(VARIANTS)
    for run in runs:
        assert [epoch["epoch"] for epoch in run["epochs"]] == [1, 2]
        assert all(0 <= epoch["apgd-ce"] <= 1 and 0 <= epoch["pgd10"] <= 1 for epoch in run["epochs"])
        assert run["variant"] in done.stdout
