"""The sentences of a study's report hold whatever its numbers are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from distributed_autolora.reporting.study import AUTOATTACK, Study, load_study
from distributed_autolora.reporting.study_outcomes import pooled_outcomes
from distributed_autolora.reporting.study_reasons import reasons
from distributed_autolora.reporting.study_search import search_summary
from distributed_autolora.reporting.study_statistics import Comparison, compare, corrected
from distributed_autolora.reporting.study_text import report_text
from distributed_autolora.reporting.study_verdict import verdict
from tests.reporting import studies

PGD = "robust_accuracy/pgd10"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A finished study; its verdicts are on made-up comparisons."""
    return load_study(studies.study(tmp_path_factory.mktemp("home") / "study", autoattack=False))


def cell(baseline: str, own: Sequence[float], other: Sequence[float], metric: str = PGD, p: float = 1e-5) -> Comparison:
    """A comparison of AutoLoRa whose tests gave `p`."""
    return Comparison("AutoLoRa", baseline, metric, tuple(own), tuple(other), needed=0.1, student=p, welch=p)


def said(study: Study, *cells: Comparison) -> str:
    return verdict(study, corrected(cells))


def rewrite(folder: Path, run: str, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Changes the history of a run on disk."""
    file = folder / "runs" / run / "history.json"
    records = json.loads(file.read_text())
    change(records)
    file.write_text(json.dumps(records))


def test_means_that_are_equal_but_for_rounding_are_no_lead(finished: Study) -> None:
    cells = [cell("TWINS", [0.1, 0.2, 0.3], [0.3, 0.3, 0.0], p=0.9), cell("Vanilla RFT", [0.1, 0.2, 0.3], [0.1] * 3)]
    assert sum([0.1, 0.2, 0.3]) != sum([0.3, 0.3, 0.0])
    text = said(finished, *cells)
    assert text.startswith("**AutoLoRa does not win**: its mean PGD-10 accuracy of 20.0 % equals that of TWINS.")
    assert "Its mean and that of TWINS are the same" in text


def test_a_claim_says_its_direction(finished: Study) -> None:
    text = said(finished, cell("TWINS", [0.5] * 3, [0.6] * 3), cell("Vanilla RFT", [0.5] * 3, [0.4] * 3, p=0.5))
    assert "That it is behind TWINS can be claimed (p = 2e-05" in text
    assert "That it is ahead of Vanilla RFT cannot be claimed: three seeds cannot show this (p = 0.5" in text


def test_arms_of_which_the_same_can_be_said_share_a_sentence(finished: Study) -> None:
    text = said(finished, *(cell(name, [0.5] * 3, [0.6] * 3, p=0.9) for name in ("TWINS", "Vanilla RFT")))
    assert "That it is behind TWINS and Vanilla RFT cannot be claimed: three seeds cannot show this (p = 1" in text
    assert text.count("cannot be claimed") == 1


def test_a_robust_accuracy_decides_where_one_arm_lacks_it_and_that_arm_is_named(finished: Study) -> None:
    natural = [cell(name, [0.9] * 3, [0.5] * 3, "natural_accuracy") for name in ("TWINS", "Vanilla RFT")]
    text = said(finished, *natural, cell("TWINS", [0.4] * 3, [0.5] * 3))
    assert text.startswith("**AutoLoRa does not win here**: 40.0 % PGD-10 accuracy")
    assert "Not in this verdict for want of their PGD-10 accuracy: Vanilla RFT." in text


def test_a_stronger_attack_that_says_otherwise_on_some_arms_forbids_a_win(finished: Study) -> None:
    ahead = [cell(name, [0.6] * 3, [0.5] * 3) for name in ("TWINS", "Vanilla RFT")]
    assert said(finished, *ahead).startswith("**AutoLoRa wins**")
    against = cell("TWINS", [0.4] * 3, [0.5] * 3, AUTOATTACK)
    text = said(finished, *ahead, against)
    assert text.startswith("**AutoLoRa has the highest mean, which does not yet show that it wins**")
    assert "AutoAttack accuracy: AutoLoRa 40.0 %, -10.0 points against TWINS" in text


def test_a_reference_under_step_decay_is_not_said_to_have_been_halved(tmp_path: Path) -> None:
    folder = studies.study(tmp_path, reference="Vanilla RFT", autoattack=False)
    study = load_study(folder)
    for run in study.of("Vanilla RFT", "final"):

        def decay(records: list[dict[str, Any]]) -> None:
            for record in records:
                record |= {"halved": 0, "restored": 0, "lr": 0.01 if record["epoch"] <= 10 else 0.001}

        rewrite(folder, str(run.name), decay)
    study = load_study(folder)
    found = reasons(study, compare(study))
    assert found[0].startswith("Vanilla RFT, seed 0: the learning rate went from 0.01 to 0.001 in 20 epochs; the epoch")
    assert not any("halving" in sentence for sentence in found)


@pytest.mark.parametrize("rule", ["released", "paired"])
def test_a_late_choice_hints_at_a_rise_only_where_the_rule_does_not_prefer_late_ones(rule: str, tmp_path: Path) -> None:
    folder = studies.study(tmp_path, autoattack=False)
    config = folder / "runs" / str(load_study(folder).of("AutoLoRa", "final")[0].name) / "config.yaml"
    config.write_text(config.read_text().replace("rule: released", f"rule: {rule}"))
    rewrite(folder, config.parent.name, lambda records: records[-1].update(best_epoch=19))
    study = load_study(folder)
    (course,) = [text for text in reasons(study, compare(study)) if text.startswith("AutoLoRa, seed 0:")]
    assert "the epoch chosen on validation was 19" in course
    assert ("may still have been rising" in course) == (rule == "released")


def test_of_equal_trials_the_first_is_the_winner_and_that_is_no_alarm(tmp_path: Path) -> None:
    folder = studies.study(tmp_path, autoattack=False)
    arm = "Vanilla RFT"
    trials = load_study(folder).of(arm, "search")[:2]
    best = trials[0].validation_accuracy

    def as_good(records: list[dict[str, Any]]) -> None:
        records[-1]["best_val/robust_accuracy/pgd10"] = best

    rewrite(folder, str(trials[1].name), as_good)
    rewrite(folder, "final-30", as_good)
    study = load_study(folder)
    text = search_summary(study, study.arm(arm))
    assert "2 trials share the highest accuracy; the first in the order of the grid won." in text
    assert "which is not the best finished trial" not in text
    assert "lr 0.01 (largest), weight_decay 1e-4 (largest); a better value may lie beyond it" in text
    assert "The final run on seed 0 reached the validation accuracy of the chosen trial again." in text


def test_a_study_with_a_run_to_come_says_so_before_its_verdict(tmp_path: Path) -> None:
    folder = studies.study(tmp_path, autoattack=False)
    finished = load_study(folder)
    assert "is not finished" not in report_text(finished, pooled_outcomes(finished), [])
    entries = studies.entries_of(folder)
    entries[-1]["status"] = "failed"
    (folder / "runs.json").write_text(json.dumps(entries))
    study = load_study(folder)
    text = report_text(study, pooled_outcomes(study), [])
    assert text.split("\n\n")[1].startswith("**This study is not finished: 31 runs are done")
    assert "does not win here" in text.split("\n\n")[2]
