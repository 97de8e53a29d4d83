"""The results of a study: which accuracy they are on, their means and tests, and the status of an unfinished one."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from distributed_autolora.reporting.study.loading import APGD, AUTOATTACK, NATURAL, StudyResults, StudyRun, load_study
from distributed_autolora.reporting.study.statistics import Comparison, compare, corrected, decisive
from distributed_autolora.reporting.study.text import mlflow_note, status
from tests.reporting.study import studies

PGD = "robust_accuracy/pgd10"
OTHERS = ("twins", "vanilla-rft")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    """A finished study of which every evaluated run has APGD beside AutoAttack."""
    study = load_study(studies.study(tmp_path_factory.mktemp("home") / "study"))
    return replace(study, runs=tuple(map(evaluated_by_apgd, study.runs)))


def evaluated_by_apgd(run: StudyRun) -> StudyRun:
    if not run.evaluations:
        return run
    ((file, found),) = run.evaluations.items()
    autoattack = found.attack("autoattack")
    assert autoattack is not None
    return replace(run, evaluations={file: replace(found, attacks=(*found.attacks, replace(autoattack, name="apgd")))})


def cells(metric: str, *baselines: str) -> list[Comparison]:
    return [cell(baseline, [0.5] * 3, [0.4] * 3, metric) for baseline in baselines]


def cell(baseline: str, own: Sequence[float], other: Sequence[float], metric: str = PGD, p: float = 1e-5) -> Comparison:
    """A comparison of AutoLoRa whose tests gave `p`."""
    return Comparison("autolora", baseline, metric, tuple(own), tuple(other), needed=0.1, student=p, welch=p)


def test_of_attacks_that_equally_many_arms_have_the_strongest_decides(finished: StudyResults) -> None:
    def metric_of(*parts: list[Comparison]) -> set[str]:
        return {found.metric for found in decisive(finished, [cell for part in parts for cell in part])}

    pgd, apgd, natural = cells(PGD, *OTHERS), cells(APGD, *OTHERS), cells(NATURAL, *OTHERS)
    assert metric_of(natural, pgd, apgd, cells(AUTOATTACK, *OTHERS)) == {AUTOATTACK}
    assert metric_of(pgd, apgd, cells(AUTOATTACK, "twins")) == {APGD}
    assert metric_of(pgd, cells(APGD, "twins"), cells(AUTOATTACK, "twins")) == {PGD}
    assert metric_of(cells(PGD, "twins"), cells(APGD, "twins"), cells(AUTOATTACK, "twins")) == {AUTOATTACK}
    assert metric_of(natural, cells(PGD, "twins")) == {PGD}, "a robust accuracy decides, even of fewer arms"


def test_each_reference_has_results_of_its_own(tmp_path: Path) -> None:
    folder = studies.study(tmp_path)
    description = json.loads((folder / "study.json").read_text())
    description["arms"][2]["reference"] = "twins"
    (folder / "study.json").write_text(json.dumps(description))
    study = load_study(folder)
    found = {(cell.reference, cell.baseline, cell.metric) for cell in decisive(study, compare(study))}
    assert found == {("autolora", "twins", AUTOATTACK), ("twins", "vanilla-rft", PGD)}


def test_means_that_are_equal_but_for_rounding_do_not_differ() -> None:
    assert sum([0.1, 0.2, 0.3]) != sum([0.3, 0.3, 0.0])
    assert cell("twins", [0.1, 0.2, 0.3], [0.3, 0.3, 0.0]).difference == 0


def test_an_arm_that_is_better_for_sure_differs_significantly(tmp_path: Path) -> None:
    study = load_study(studies.study(tmp_path, reference="twins", autoattack=False, images=4000))
    found = decisive(study, compare(study))
    assert [(cell.baseline, cell.is_significant, cell.difference > 0) for cell in found] == [
        ("autolora", True, True),
        ("vanilla-rft", True, True),
    ]


@pytest.mark.parametrize("p", [1e-5, 0.9])
def test_the_remark_is_that_of_the_tests(p: float) -> None:
    (tested,) = corrected([cell("twins", [0.5] * 3, [0.6] * 3, p=p)])
    assert tested.remark == ("significant" if p < 0.05 else "not significant")
    assert replace(tested, student=None, reference_values=(0.5,)).remark == "no test: one seed"


def test_a_failed_final_run_leaves_a_study_unfinished(tmp_path: Path, finished: StudyResults) -> None:
    assert status(finished).startswith("Status: finished")
    folder = studies.study(tmp_path, autoattack=False)
    entries = studies.entries_of(folder)
    entries[-1]["status"] = "failed"
    studies.write_entries(folder, entries)
    assert f"31 of {len(entries)} runs" in status(load_study(folder))


def test_the_mlflow_page_has_every_arms_accuracies_and_only_so_much_text(finished: StudyResults) -> None:
    text = mlflow_note(finished)
    for arm in finished.arms:
        natural = [100 * counts.accuracy for counts in finished.accuracies(arm.id, NATURAL).values()]
        (line,) = [line for line in text.splitlines() if line.startswith(f"- {arm.label}: ")]
        assert f"({', '.join(f'{value:.1f}' for value in natural)})" in line
    assert "|" not in text
    assert "![" not in text
    short = mlflow_note(finished, 500)
    assert len(short) <= 500
    assert short.splitlines()[-1] == text.splitlines()[-1]
