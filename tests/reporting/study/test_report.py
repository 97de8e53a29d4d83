"""The report of a study: its numbers from its files, whatever is missing."""

import csv
import json
import re
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.reporting.format import points
from distributed_autolora.reporting.statistics import paired_bootstrap
from distributed_autolora.reporting.study.figures import cost_figure, search_figure
from distributed_autolora.reporting.study.loading import load_study
from distributed_autolora.reporting.study.outcomes import pooled_outcomes
from distributed_autolora.reporting.study.report import write_report
from distributed_autolora.reporting.study.run_tables import search_sentence
from distributed_autolora.reporting.study.text import report_text
from tests.reporting.study import studies


@pytest.fixture(scope="module")
def text(finished: Path) -> str:
    return (finished / "report" / "report.md").read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = studies.study(tmp_path_factory.mktemp("home") / "tuned_baselines-fashion-mnist-5-9")
    write_report(folder)
    return folder


def text_of(folder: Path) -> str:
    study = load_study(folder)
    return report_text(study, pooled_outcomes(study), [])


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n", 1)[1].split("\n## ", maxsplit=1)[0]


def cells(text: str, title: str) -> list[list[str]]:
    lines = [line for line in section(text, title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def change_runs(folder: Path, change: Any) -> None:
    entries = [new for entry in studies.entries_of(folder) if (new := change(entry)) is not None]
    studies.write_entries(folder, entries)


def test_every_accuracy_can_be_counted_again_from_the_pooled_outcomes(finished: Path, text: str) -> None:
    rows = pq.read_table(finished / "report" / "outcomes.parquet").to_pylist()
    printed = {row[0].strip("*"): row for row in cells(text, "Test accuracy")[2:5]}
    assert list(printed) == ["AutoLoRa", "TWINS", "Vanilla RFT"]
    for arm, label in studies.LABELS.items():
        shown = printed[label][1:]
        seeds = [[row for row in rows if (row["arm"], row["seed"]) == (arm, seed)] for seed in range(3)]
        for prediction, cell in zip(("natural_prediction", "pgd10_prediction"), shown, strict=False):
            shares = [sum(row[prediction] == row["label"] for row in part) / len(part) for part in seeds]
            each = ", ".join(f"{100 * share:.1f}" for share in shares)
            assert cell.startswith(f"{100 * statistics.fmean(shares):.1f} ± ")
            assert cell.endswith(f"({each})")
        known = [[row["robust/autoattack"] for row in part if row["robust/autoattack"] is not None] for part in seeds]
        shares = [sum(part) / len(part) for part in known if part]
        expected = f"{100 * statistics.fmean(shares):.1f} " if shares else "not run"
        assert shown[2].startswith(expected)


def test_mcnemar_counts_come_from_paired_images(finished: Path, text: str) -> None:
    rows = pq.read_table(finished / "report" / "outcomes.parquet").to_pylist()
    own, other = (
        {
            row["row_id"]
            for row in rows
            if (row["arm"], row["seed"]) == (arm, 1) and row["pgd10_prediction"] == row["label"]
        }
        for arm in ("autolora", "twins")
    )
    b, c = len(own - other), len(other - own)
    row = next(row for row in cells(text, "Statistical tests") if row[:2] == ["TWINS", "1"])
    assert row[3].startswith(f"{b} : {c}, p = ")


def test_arms_are_compared_paired_by_seed_and_image(finished: Path, text: str) -> None:
    rows = pq.read_table(finished / "report" / "outcomes.parquet").to_pylist()
    robust = {(row["arm"], row["seed"], row["row_id"]): row["robust/autoattack"] for row in rows}
    ids = sorted({name for arm, _, name in robust if robust[arm, 0, name] is not None})
    own, other = (
        np.array([[robust[arm, seed, name] for name in ids] for seed in range(3)], float)
        for arm in ("autolora", "twins")
    )
    expected = paired_bootstrap(own - other)
    assert expected is not None
    row = next(row for row in cells(text, "Statistical tests") if row[:2] == ["TWINS", "AutoAttack"] and "[" in row[2])
    ends = " ".join(points(value) for value in (expected.difference, expected.low, expected.high))
    assert (re.sub(r"[][,]", "", row[2]), row[4]) == (ends, f"3 x {len(ids)}")


def test_the_table_of_results_is_repeated_in_the_csv(finished: Path) -> None:
    rows = list(csv.DictReader((finished / "report" / "results.csv").open()))
    assert len(rows) == len(studies.entries_of(finished))
    failed = next(row for row in rows if row["status"] == "failed")
    assert (failed["best_val/robust_accuracy"], failed["test/natural_accuracy"]) == ("", "")
    final = next(row for row in rows if row["phase"] == "final")
    counts = json.loads((finished / "runs" / final["run"] / "result.json").read_text())["test"]["natural"]
    assert float(final["test/natural_accuracy"]) == counts["correct"] / counts["total"]


def test_a_failed_trial_is_never_a_number(text: str) -> None:
    row = next(row for row in cells(text, "Hyperparameter search") if "failed" in row[-1])
    assert row == ["0.01", "1e-5", "1", "-", "failed: RayTaskError: worker 1 \\| died of a signal"]
    assert section(text, "Missing or failed").count("failed: TWINS search") == 1


def test_a_search_costs_what_all_its_trials_cost_failed_ones_included(text: str) -> None:
    rows = {(row[0], row[1]): row for row in cells(text, "Cost")}
    seconds = (17 * 20 + 3) * 6.4 * 2
    forward = (17 * 20 + 3) * 14000
    row = rows["TWINS", "search, 18 trials"]
    assert row[2] == f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02d}:{round(seconds % 60):02d}"
    assert row[3] == f"{forward / 1e6:.2f} M"
    assert rows["TWINS", "**search and one final run**"][-1] == f"{1 + (forward * 25 / 14) / 500000:.1f}"
    assert rows["AutoLoRa", "one final run, mean of 3"][-1] == "1.0"


def test_one_seed_makes_tests_undefined_and_says_so(tmp_path: Path) -> None:
    folder = studies.study(tmp_path, seeds=1)
    text = text_of(folder)
    assert all(row[-1] == "no test: one seed" for row in cells(text, "Statistical tests")[2:7])
    assert "nan" not in text.lower().split()
    assert "±" not in "".join(map(str, cells(text, "Test accuracy")))


def test_an_unfinished_study_says_what_is_missing(tmp_path: Path) -> None:
    folder = studies.study(tmp_path)
    order = list(studies.LABELS)

    def interrupt(entry: dict[str, Any]) -> dict[str, Any] | None:
        if entry["arm"] == "vanilla-rft":
            return None
        late = entry["phase"] == "final" and (order.index(entry["arm"]), entry["seed"]) > (0, 1)
        return entry | ({"status": "running"} if late else {})

    change_runs(folder, interrupt)
    text = text_of(folder)
    lines = section(text, "Missing or failed").splitlines()
    assert "- not started: Vanilla RFT final, seed 0, 1, 2" in lines
    assert "- running after 20 epochs: AutoLoRa final seed 2" in lines
    assert "[2 of three seeds]" in next(row for row in cells(text, "Test accuracy") if row[0] == "**AutoLoRa**")[1]


def test_a_study_that_has_not_begun_has_a_report(tmp_path: Path) -> None:
    folder = studies.study(tmp_path, title="Not begun")
    shutil.rmtree(folder / "runs")
    (folder / "runs.json").unlink()
    report = write_report(folder)
    assert report.read_text().startswith("# Not begun\n\nStatus: ")
    assert sorted(file.name for file in report.parent.iterdir()) == ["report.md", "results.csv"]


def test_the_pictures_that_are_linked_are_those_that_exist(finished: Path, text: str) -> None:
    linked = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert sorted(linked) == sorted(file.name for file in (finished / "report").glob("*.png"))


def test_every_trial_is_drawn_once_and_failed_ones_as_failures(finished: Path) -> None:
    study = load_study(finished)
    figure, cost = search_figure(study), cost_figure(study)
    assert figure is not None
    assert cost is not None
    drawn = [line.get_gid() for axes in figure.axes for line in axes.lines if line.get_gid()]
    assert {gid: drawn.count(gid) for gid in drawn} == {"finished": 22, "failed": 1, "stopped_early": 1, "chosen": 2}
    marks = {line.get_gid(): np.asarray(line.get_xydata()) for line in cost.axes[1].lines if line.get_gid()}
    assert marks["autolora"].tolist() == [[500000, pytest.approx(76.83, abs=0.01)]]


def test_the_papers_numbers_stand_beside_ours_where_the_task_is_the_papers(tmp_path: Path) -> None:
    text = text_of(studies.study(tmp_path, task="cifar10", backbone="resnet18"))
    rows = cells(text, "Test accuracy")
    assert rows[3] == ["*paper, Table 1*", "84.20", "54.27", "48.95"]
    tests = cells(text, "Statistical tests")[2:7]
    assert [row[-1] for row in tests] == ["0.0088", "0.0002", "0.0019", "0.0001", "0.0014"]


def test_a_study_of_the_rank_shows_the_size_of_the_branch(tmp_path: Path) -> None:
    text = text_of(studies.study(tmp_path, paper_tables=["3"]))
    header, row = (cells(text, "Test accuracy")[index] for index in (0, 2))
    assert header[1] == "branch parameters"
    # A of a 3 x 3 layer is [24, 3 in], B [3 out, 24], of a 1 x 1 layer [8, in] and [out, 8]; 13 layers but the stem.
    threes = [(16, 16)] * 4 + [(16, 32)] + [(32, 32)] * 3 + [(32, 64)] + [(64, 64)] * 3
    branch = sum(72 * (a + b) for a, b in threes) + sum(8 * (a + b) for a, b in [(16, 32), (32, 64)])
    extractor = sum(9 * a * b for a, b in [(1, 16), *threes]) + 16 * 32 + 32 * 64
    extractor += 2 * (5 * 16 + 5 * 32 + 5 * 64)
    assert row[1].split()[0] == f"{branch / extractor:.2%}"


def test_outcomes_that_contradict_a_result_and_other_splits_are_warned_of(tmp_path: Path) -> None:
    folder = studies.study(tmp_path, autoattack=False)
    file = folder / "runs" / "final-0" / "result.json"
    result = json.loads(file.read_text())
    result["test"]["natural"]["correct"] -= 1
    file.write_text(json.dumps(result | {"split_digest": "ef56" * 16}))
    text = text_of(folder)
    warnings = section(text, "Warnings")
    assert "AutoLoRa, seed 0, natural_accuracy: the result says" in warnings
    assert "do not share one data split" in warnings


def test_a_search_says_which_trial_is_the_best_and_where_in_the_grid(tmp_path: Path) -> None:
    folder = studies.study(tmp_path, autoattack=False)
    study = load_study(folder)
    arm = study.arm("vanilla-rft")
    first, second = study.of(arm.id, "search")[:2]
    assert "lr=0.01 wd=0.0001, at the edge of the grid in lr, weight_decay" in search_sentence(study, arm)
    run = RunFolder(folder / "runs" / str(second.run))
    *records, last = run.history()
    run.write_history([*records, replace(last, best_robust_accuracy=float(first.validation_accuracy or 0))])
    study = load_study(folder)
    assert "lr=0.01 wd=0.0001, first of 2 equal ones" in search_sentence(study, arm)
    assert "5 of six trials finished" in search_sentence(study, arm)


@pytest.mark.parametrize("break_it", ["missing", "corrupt", "stranger", "0.1"])
def test_a_folder_that_is_no_study_is_refused_in_one_line(tmp_path: Path, break_it: str) -> None:
    if break_it != "missing":
        studies.write_entries(studies.study(tmp_path, seeds=1), [studies.entry("other", "final", 0, {}, None)])
    if break_it == "corrupt":
        (tmp_path / "runs.json").write_text("{")
    if break_it == "0.1":
        (tmp_path / "study.json").write_text('{"study": "tuned_baselines", "arms": [{"name": "TWINS"}]}')
    with pytest.raises(UserError, match=r"study\.json|cannot be read|no arm|version 0\.1") as refusal:
        write_report(tmp_path)
    assert "\n" not in str(refusal.value)
