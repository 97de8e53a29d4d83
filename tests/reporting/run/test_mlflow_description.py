"""Descriptions for the pages of an experiment tracker: complete, short enough, no broken pictures."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from distributed_autolora.reporting.run.mlflow_description import run_description
from distributed_autolora.reporting.study.mlflow_description import study_description
from tests.reporting import runs

REPORT = Path(__file__).resolve().parents[3] / "docs" / "results" / "untuned" / "report.md"


def test_a_run_is_described_by_what_it_was_and_what_its_schedule_did() -> None:
    history = runs.history(20)
    result = replace(runs.result(history), rule="paired")
    text = run_description(result, history)
    assert "`autolora` on `pets`, backbone `resnet18`, learning rate: automatic, rule `paired`, seed 0." in text
    assert "Restored the weights of epoch 9 after epoch 9, 13 after epoch 13, 15 after epoch 17." in text
    assert text.index("83.3 %") < text.index("`autolora`") < text.index("jobs/finetune.py --config")
    fixed = run_description(replace(result, schedule="step_decay", rule=None), history)
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
    plain = re.sub(r"\[(.+?)\]\(#.*?\)", r"\1", report).strip()
    kept = [part for part in plain.split("\n\n") if part[0] not in "!|" and not part.startswith("Per cent: ")]
    assert "The last lines are differences" not in text, "the lines are not there"
    added = [part for part in body if part not in kept]
    assert [part for part in body if part in kept] == kept[: len(body) - len(added)]
    assert not body[-1].startswith("#")
    assert not body[-1].endswith(":")


def test_a_study_s_page_has_the_accuracies_of_every_arm_behind_the_verdict_as_a_list() -> None:
    report = REPORT.read_text()
    text = study_description(report, 100_000)
    assert "|" not in text.replace("\\|", "")
    _, _, *rows = next(part for part in report.split("\n\n") if part.startswith("|")).splitlines()
    arms = [row.split("|")[1:-1] for row in rows if row.startswith("| **")]
    shown = [arm for arm in arms if {cell.strip() for cell in arm[1:]} != {"-"}]
    items = text[text.index("Test accuracy in per cent; ") :].split("\n\n")[1].splitlines()
    assert len(items) == len(shown) > 10
    for item, (arm, natural, *_) in zip(items, shown, strict=True):
        assert item.startswith(f"- {arm.strip()}: natural {natural.strip()}, PGD-10 ")
    assert "Test accuracy in" not in study_description("# A study\n\n| % | natural |\n| - | - |\n| **A** | - |\n", 999)
    assert text.index("- Natural accuracy: ") < text.index(items[0]) < text.index("\n## ")
