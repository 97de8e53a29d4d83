"""The results of a study: which accuracy they are on, their means and tests, and the status of an unfinished one."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.reporting.masking import masking_summary
from distributed_autolora.reporting.study.figures import _shared_legend
from distributed_autolora.reporting.study.loading import APGD, AUTOATTACK, NATURAL, StudyResults, StudyRun, load_study
from distributed_autolora.reporting.study.provenance import reproduction, warnings
from distributed_autolora.reporting.study.statistics import Comparison, compare, corrected, decisive
from distributed_autolora.reporting.study.text import mlflow_note, status
from tests.reporting import runs
from tests.reporting.study import studies

PGD = "robust_accuracy/pgd10"
OTHERS = ("twins", "vanilla-rft")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
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


ONE, OTHER = "python jobs/compare.py --arms AutoLoRa", "python jobs/compare.py --arms TWINS"


def printed(folder: Path) -> list[str]:
    return reproduction(load_study(folder), None).split("```\n")[1].splitlines()


def test_all_commands_of_a_study_are_printed_in_order(tmp_path: Path) -> None:
    assert printed(studies.study(tmp_path, commands=[ONE, OTHER])) == [ONE, OTHER]


@pytest.mark.parametrize("told_by", ["result", "history"])
def test_a_run_whose_checks_warned_is_a_reason_to_doubt_it(told_by: str, tmp_path: Path) -> None:
    folder = studies.study(tmp_path, autoattack=False)
    for name, fallen in (("final-0", (9, 2, 12)), ("final-1", (2, 2, 2))):
        run = RunFolder(folder / "runs" / name)
        history = run.history()
        for epoch, count in zip((4, 8, 12), fallen, strict=True):
            history[epoch - 1] = runs.checked(history[epoch - 1], count)
        if told_by == "history":
            run.write_history(history)
        else:
            run.write_result(replace(run.result(), masking=masking_summary(history)))
    (line,) = [text for text in warnings(load_study(folder), None) if text.startswith("AutoLoRa, seed")]
    assert all(part in line for part in ("seed 0", "epoch 4 and 12", "18.8 %, epoch 12"))


LONG = "AutoLoRa, paired, average deployed and teaching, detached labels"


@pytest.mark.parametrize(("label", "columns"), [("TWINS", 5), (LONG, 2), (2 * LONG, 1)])
def test_a_shared_legend_has_as_many_columns_as_fit_and_stays_inside(label: str, columns: int) -> None:
    figure = Figure(figsize=(12, 6), dpi=100, layout="constrained")
    axes = figure.subplots()
    for index in range(10):
        axes.plot([0, 1], [index, index], "o", label=f"{label} {index}")
    _shared_legend(figure)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    drawn = legend.get_window_extent()
    rows = len({round(text.get_window_extent().y0) for text in legend.get_texts()})
    assert rows == -(-10 // columns)
    assert drawn.x0 >= 0
    assert drawn.x1 <= figure.bbox.width
    assert drawn.y0 >= 0
    assert drawn.y1 <= axes.get_window_extent().y0
