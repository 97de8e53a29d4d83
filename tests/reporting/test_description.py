"""Descriptions for the pages of an experiment tracker: complete, short enough, no broken pictures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from distributed_autolora.reporting.description import run_description, study_description
from tests.reporting import runs

REPORT = Path(__file__).resolve().parents[2] / "docs" / "results" / "untuned" / "report.md"


def test_a_run_is_described_by_what_it_was_and_what_its_schedule_did() -> None:
    history = runs.history(20)
    own = {"method": "autolora", "task": "pets", "backbone": "resnet18", "schedule": "automatic", "rule": "paired"}
    text = run_description(runs.result(history) | own, history)
    assert "`autolora` on `pets`, backbone `resnet18`, learning rate: automatic, rule `paired`, seed 0." in text
    assert "Went back to the weights of epoch 9 after epoch 9, 13 after epoch 13, 15 after epoch 17." in text
    assert text.index("83.3 %") < text.index("`autolora`") < text.index("jobs/finetune.py --config")
    fixed = run_description(runs.result(history) | own | {"schedule": "step_decay", "rule": None}, history)
    assert "learning rate: step decay, seed 0" in fixed


@pytest.mark.parametrize("length", [1500, 8000, 100_000])
def test_a_study_is_described_by_whole_paragraphs_of_its_report_without_pictures(length: int) -> None:
    report = REPORT.read_text()
    text = study_description(report, length)
    *body, end = text.strip().split("\n\n")
    assert len(text) <= length
    assert "![" not in text
    assert "](#" not in text, "a link within the page leads to nowhere on a tracker's page"
    assert "folder `report` under Artifacts" in end
    kept = [part for part in re.sub(r"\[(.+?)\]\(#.*?\)", r"\1", report).strip().split("\n\n") if part[:2] != "!["]
    assert body == kept[: len(body)]
    assert (len(body) == len(kept)) == (length == 100_000)
    assert not body[-1].startswith("#")
