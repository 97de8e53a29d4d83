"""The sentences of a study's report hold whatever its numbers are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from distributed_autolora.reporting.study.loading import APGD, AUTOATTACK, Study, StudyRun, load_study
from distributed_autolora.reporting.study.outcomes import pooled_outcomes
from distributed_autolora.reporting.study.statistics import Comparison, compare, corrected, deciding_metric
from distributed_autolora.reporting.study.text import report_text
from distributed_autolora.reporting.study.verdict import verdict
from tests.reporting.study import studies

PGD = "robust_accuracy/pgd10"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A finished study; its verdicts are on made-up comparisons."""
    return load_study(studies.study(tmp_path_factory.mktemp("home") / "study", autoattack=False))


def cell(baseline: str, own: Sequence[float], other: Sequence[float], metric: str = PGD, p: float = 1e-5) -> Comparison:
    """A comparison of AutoLoRa whose tests gave `p`."""
    return Comparison("AutoLoRa", baseline, metric, tuple(own), tuple(other), needed=0.1, student=p, welch=p)


def judged_by_apgd(run: StudyRun) -> StudyRun:
    """Returns a run whose evaluation has the first two attacks of AutoAttack as well."""
    if run.evaluation is None:
        return run
    accuracies = run.evaluation["accuracies"]
    return replace(run, evaluation=run.evaluation | {"accuracies": accuracies | {APGD: accuracies[AUTOATTACK]}})


def said(study: Study, *cells: Comparison) -> str:
    return verdict(study, corrected(cells))


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


def test_a_verdict_rests_on_the_arms_with_the_most_seeds_and_marks_the_others(finished: Study) -> None:
    behind = cell("TWINS", [0.5] * 3, [0.6] * 3)
    worse_on_one = replace(cell("Vanilla RFT", [0.4], [0.7]), student=None, welch=None)
    text = said(finished, worse_on_one, behind)
    assert text.startswith(
        "**AutoLoRa does not win here**: 50.0 % PGD-10 accuracy on average over three seeds, and TWINS reaches 60.0 % "
        "(AutoLoRa -10.0 points). In all it is behind TWINS and Vanilla RFT (one seed). That it"
    )
    better_on_one = replace(worse_on_one, baseline_values=(0.3,))
    assert "It is ahead of Vanilla RFT (+10.0 points on one seed)." in said(finished, better_on_one, behind)


def test_a_lead_over_the_arms_with_the_most_seeds_alone_is_no_win(finished: Study) -> None:
    ahead = cell("TWINS", [0.5] * 3, [0.4] * 3)
    on_one = replace(cell("Vanilla RFT", [0.5], [0.3]), student=None, welch=None)
    text = said(finished, on_one, ahead)
    assert text.startswith("**AutoLoRa has the highest mean, which does not yet show that it wins**: 50.0 %")
    assert "against TWINS (+10.0 points) and Vanilla RFT (+20.0 points on one seed)." in text
    text = said(finished, replace(on_one, baseline_values=(0.6,)), ahead)
    assert text.startswith("**AutoLoRa has the highest mean over three seeds, which does not yet show that it wins**")
    assert (
        "against TWINS (+10.0 points). On fewer seeds it is not ahead of Vanilla RFT (-10.0 points on one seed)."
    ) in text
    on_two = cell("Vanilla RFT", [0.5] * 2, [0.3] * 2)
    assert said(finished, ahead, on_two).startswith("**AutoLoRa wins**")


def test_one_seed_has_no_average(finished: Study) -> None:
    for other, rank in ((0.4, "has the highest mean"), (0.6, "does not win here")):
        text = said(finished, replace(cell("TWINS", [0.5], [other]), student=None, welch=None))
        assert text.startswith(f"**AutoLoRa {rank}")
        assert ": 50.0 % PGD-10 accuracy on one seed, " in text


@pytest.mark.parametrize(
    ("p", "seeds", "sentence"),
    [
        ((1e-5, 1e-5), (3, 3), "-10.0 points against TWINS and +10.0 points against Vanilla RFT (each can be claimed)"),
        ((0.9, 0.9), (3, 3), "-10.0 points against TWINS and +10.0 points against Vanilla RFT (none can be claimed)"),
        (
            (1e-5, 0.9),
            (3, 3),
            "-10.0 points against TWINS (can be claimed) and +10.0 points against Vanilla RFT (cannot be claimed)",
        ),
        (
            (0.9, 0.9),
            (3, 2),
            "-10.0 points against TWINS and +10.0 points on two seeds against Vanilla RFT (none can be claimed)",
        ),
        (
            (0.9, 1e-5),
            (2, 3),
            "-10.0 points on two seeds against TWINS (cannot be claimed) and +10.0 points against Vanilla RFT (can be "
            "claimed)",
        ),
    ],
)
def test_accuracies_that_do_not_decide_say_what_can_be_claimed_and_on_how_many_seeds(
    p: tuple[float, float], seeds: tuple[int, int], sentence: str, finished: Study
) -> None:
    decide = [cell(name, [0.5] * 3, [0.4] * 3) for name in ("TWINS", "Vanilla RFT")]
    natural = [
        cell(name, [0.9] * n, [other] * n, "natural_accuracy", p=one)
        for name, other, one, n in zip(("TWINS", "Vanilla RFT"), (1.0, 0.8), p, seeds, strict=True)
    ]
    over = "" if seeds == (3, 3) else " over three seeds"
    assert f"- Natural accuracy: AutoLoRa 90.0 %{over}, {sentence}.\n" in said(finished, *decide, *natural)


def test_of_attacks_that_equally_many_arms_have_the_strongest_decides(tmp_path: Path) -> None:
    study = load_study(studies.study(tmp_path))
    described = replace(study, runs=tuple(map(judged_by_apgd, study.runs)))
    assert described.metrics[-1] == APGD
    attacks = (PGD, APGD, AUTOATTACK)
    both = {m: [cell(name, [0.5] * 3, [0.4] * 3, m) for name in ("TWINS", "Vanilla RFT")] for m in attacks}
    assert deciding_metric(described, [*both[PGD], *both[APGD], *both[AUTOATTACK]]) == AUTOATTACK
    assert deciding_metric(described, [*both[PGD], *both[APGD], *both[AUTOATTACK][:1]]) == APGD
    assert deciding_metric(described, [*both[PGD], *both[APGD][1:], *both[AUTOATTACK][:1]]) == PGD
    assert deciding_metric(described, [*both[PGD][:1], *both[APGD][:1], *both[AUTOATTACK][1:]]) == AUTOATTACK
    assert deciding_metric(described, [*both[PGD], *both[APGD]]) == APGD


def test_each_of_several_references_names_the_arms_that_its_verdict_lacks(tmp_path: Path) -> None:
    folder = studies.study(tmp_path)
    told = json.loads((folder / "study.json").read_text())
    told["arms"] += [
        {"name": "more", "label": "more", "searched": False, "grid": {}, "reference": "TWINS"},
        {"name": "waiting", "label": "still to come", "searched": False, "grid": {}, "reference": "TWINS"},
    ]
    done = [entry | {"arm": "more"} for entry in studies.entries_of(folder) if entry["run"] in ("final-0", "final-1")]
    studies.write(folder, told, [*studies.entries_of(folder), *done])
    study = load_study(folder)
    first, second = verdict(study, compare(study)).split("\n\n")[1].splitlines()
    assert first.startswith("- **AutoLoRa")
    assert first.endswith("can be claimed.")
    assert second.startswith("- **TWINS")
    assert second.endswith("Not in this verdict for want of a finished final run: still to come.")


def test_a_lead_that_a_stronger_attack_contradicts_is_no_win_of_one_of_several_references(finished: Study) -> None:
    arms = tuple(replace(arm, reference="TWINS") if arm.name == "Vanilla RFT" else arm for arm in finished.arms)
    several = replace(finished, arms=(*arms, replace(arms[1], name="other", label="other")))
    ahead = [cell(name, [0.6] * 3, [0.5] * 3) for name in ("TWINS", "other")]
    against = cell("TWINS", [0.4] * 3, [0.5] * 3, AUTOATTACK)
    assert "- **AutoLoRa wins**" in said(several, *ahead)
    text = said(several, *ahead, against)
    assert "- **AutoLoRa has the highest mean, which does not yet show that it wins**" in text
    lacking = said(several, ahead[0], replace(ahead[1], metric="natural_accuracy"))
    assert "Not in this verdict for want of their PGD-10 accuracy: other." in lacking


def test_an_arm_without_a_seed_of_its_reference_is_named(finished: Study) -> None:
    text = said(finished, cell("TWINS", [0.5] * 3, [0.6] * 3))
    assert "Not in this verdict for want of a seed in common with AutoLoRa: Vanilla RFT." in text


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
