"""A study whose runs were evaluated more than once: every attack's newest result counts, on the study's own images."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from distributed_autolora.orchestration.evaluations.folder import EvaluationFolder
from distributed_autolora.records import AccuracyCount, AttackResult, Evaluation, from_json
from distributed_autolora.reporting.study.loading import StudyResults, load_study
from distributed_autolora.reporting.study.outcomes import pooled_outcomes
from distributed_autolora.reporting.study.provenance import reproduction, warnings
from distributed_autolora.reporting.study.statistics import mcnemar_tests
from tests.reporting.study import studies

AUTOATTACK, OTHER = "robust_accuracy/autoattack", "robust_accuracy/pgd50"
EVALUATED = ("autolora", "twins")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study of which two arms were evaluated by AutoAttack on every second of 80 test images."""
    return studies.study(tmp_path / "study", images=80)


def evaluate_again(run: Path, attack: str, *, every: int = 1, **changes: Any) -> None:
    """Evaluates a run again as `jobs/evaluate.py` does: images robust to PGD-10 are robust to the attack.

    `every`: one in so many of the images of AutoAttack; `changes`: of the record.
    """
    place = run / "evaluation"
    earlier = from_json(Evaluation, json.loads((place / "evaluation.json").read_text()), "evaluation.json")
    kept = pq.read_table(place / "outcomes.parquet").to_pandas().iloc[::every]
    robust = np.array(kept["robust/pgd10"], dtype=bool)
    count = AccuracyCount(int(robust.sum()), len(robust))
    attacks = tuple(AttackResult(name, name, count) for name in ("pgd10", attack))
    fields: dict[str, Any] = {"test_images": len(robust), "package_versions": {"torch": "9.9"}, "sanity": ()} | changes
    columns = {"row_id": np.array(kept["row_id"]), f"robust/{attack}": robust, "robust/pgd10": robust}
    digest = hashlib.sha256(json.dumps([attack, every, fields]).encode()).hexdigest()
    result = replace(earlier, digest=digest, natural=count, attacks=attacks, **fields)
    EvaluationFolder(place, digest).write_result(result, columns)


def evaluated_runs(folder: Path) -> list[Path]:
    return [
        folder / "runs" / entry["run"]
        for entry in studies.entries_of(folder)
        if entry["phase"] == "final" and entry["arm"] in EVALUATED
    ]


def counted(study: StudyResults, metric: str) -> list[Any]:
    return [study.accuracies(arm, metric) for arm in EVALUATED]


def paired(study: StudyResults, metric: str) -> list[Any]:
    return [test for test in mcnemar_tests(study, pooled_outcomes(study)) if test.metric == metric]


def test_a_later_evaluation_by_another_attack_hides_none(folder: Path) -> None:
    before = load_study(folder)
    expected, tests = counted(before, AUTOATTACK), paired(before, AUTOATTACK)
    for run in evaluated_runs(folder):
        evaluate_again(run, "pgd50")
    study = load_study(folder)
    assert len(tests) == 3
    assert counted(study, AUTOATTACK) == expected
    assert paired(study, AUTOATTACK) == tests
    assert [list(seeds) for seeds in counted(study, OTHER)] == [[0, 1, 2]] * 2
    assert len(paired(study, OTHER)) == 3
    assert any("black box" in line for line in warnings(study, pooled_outcomes(study))), "of AutoAttack's evaluation"
    told = reproduction(study, None)
    assert "AutoAttack ran with pyautoattack 0.2.0, torch 2.14.1." in told
    assert "`outcomes-DIGEST.parquet`" in told


def test_of_two_results_of_an_attack_the_newer_one_counts_with_its_own_outcomes(folder: Path) -> None:
    runs = evaluated_runs(folder)
    for run in runs:
        evaluate_again(run, "autoattack")
        evaluate_again(run, "pgd50")
    study = load_study(folder)
    pgd = counted(study, OTHER)
    assert counted(study, AUTOATTACK) == pgd, "both leave what PGD-10 leaves"
    assert not [line for line in warnings(study, pooled_outcomes(study)) if "its outcomes" in line or "FAIL" in line]
    assert not [line for line in warnings(study, pooled_outcomes(study)) if "black box" in line], "of what is replaced"


OTHER_QUESTIONS: dict[str, Callable[[Path], None]] = {
    "fewer images": lambda run: evaluate_again(run, "pgd50", every=2),
    "another subset": lambda run: evaluate_again(run, "pgd50", seed=1),
    "another epsilon": lambda run: evaluate_again(run, "pgd50", epsilon=0.05),
    "another model": lambda run: evaluate_again(run, "pgd50", model_digest="ab"),
}


@pytest.mark.parametrize("question", OTHER_QUESTIONS)
def test_an_evaluation_on_other_images_or_limits_does_not_count(folder: Path, question: str) -> None:
    expected = counted(load_study(folder), AUTOATTACK)
    OTHER_QUESTIONS[question](evaluated_runs(folder)[0])
    study = load_study(folder)
    assert counted(study, AUTOATTACK) == expected
    assert counted(study, OTHER) == [{}, {}]


def test_runs_that_were_evaluated_on_different_images_only_are_warned_of_and_not_paired(folder: Path) -> None:
    for number, run in enumerate(evaluated_runs(folder)):
        evaluate_again(run, "autoattack", every=1 + number % 2)
        for earlier in run.glob("evaluation/*-*.*"):
            earlier.unlink()
    study = load_study(folder)
    (line,) = [text for text in warnings(study, pooled_outcomes(study)) if "same images" in text]
    assert "AutoAttack" in line
    assert len(paired(study, AUTOATTACK)) < 3
