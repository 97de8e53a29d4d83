"""A study evaluated by APGD on some of its test images, with arms of several sizes: what its report says of both."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.records import AccuracyCount, AttackResult, to_json
from distributed_autolora.reporting.masking import masking_summary
from distributed_autolora.reporting.study.loading import APGD, load_study
from distributed_autolora.reporting.study.report import write_report
from distributed_autolora.reporting.study.statistics import compare, decisive
from tests.reporting import runs
from tests.reporting.evaluations import evaluation
from tests.reporting.study import studies
from tests.reporting.study.test_report import cells, section

TEST_IMAGES, EVALUATED = 400, 100
LABEL = "APGD-CE + APGD-T (4 targets: 5 classes)"
NEAREST = 16
"""The epoch with a check that is nearest to the chosen one, 15; the checks of epochs 4 and 20 found more."""
GAPS = {"autolora": 0.02, "twins": 0.005, "vanilla-rft": 0.03}


def evaluate(run: Path, seed: int) -> None:
    """Writes an evaluation on every fourth test image: robust to APGD are those robust to PGD, but for a few."""
    own = pq.read_table(run / "outcomes.parquet").to_pydict()
    rows = np.arange(0, TEST_IMAGES, TEST_IMAGES // EVALUATED)
    pgd = np.array([own["pgd10_prediction"][row] == own["label"][row] for row in rows])
    robust = pgd & (np.arange(EVALUATED) % (10 + seed) != 0)
    place = run / f"evaluation-{EVALUATED}-images"
    place.mkdir()
    attacks = (AttackResult("apgd", LABEL, AccuracyCount(int(robust.sum()), EVALUATED)),)
    found = evaluation(test_images=EVALUATED, test_images_available=TEST_IMAGES, attacks=attacks, sanity=())
    (place / "evaluation.json").write_text(json.dumps(to_json(found)))
    kept = {"row_id": [own["row_id"][row] for row in rows], "robust/apgd": robust, "broken_by": [None] * EVALUATED}
    pq.write_table(pa.table(kept), place / "outcomes.parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study without a search whose third arm has twice the images and is compared with nothing but itself."""
    home = studies.study(tmp_path_factory.mktemp("home") / "untuned", images=TEST_IMAGES, autoattack=False)
    told = json.loads((home / "study.json").read_text())
    arms = [{"id": arm, "label": studies.LABELS[arm], "grid": {}} for arm in GAPS]
    arms[2]["reference"] = "vanilla-rft"
    entries = [entry for entry in studies.entries_of(home) if entry["phase"] == "final"]
    told |= {"arms": arms, "attack_images": EVALUATED, "images": "fashion-mnist-5-9-other"}
    studies.write(home, told, entries)
    for entry in entries:
        run = home / "runs" / entry["run"]
        evaluate(run, entry["seed"])
        folder = RunFolder(run)
        history = folder.history()
        history[3], history[-1] = runs.checked(history[3], 58), runs.checked(history[-1], 32)
        near = runs.checked(history[NEAREST - 1], round(1000 * GAPS[entry["arm"]] * (1 + entry["seed"])), 1000)
        history[NEAREST - 1] = near
        result = replace(folder.result(), masking=masking_summary(history))
        if entry["arm"] == "vanilla-rft":
            result = replace(result, train_images=2 * result.train_images, split_digest="ef56" * 16)
        folder.write_result(result)
    write_report(home)
    return home


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / "report" / "report.md").read_text()


def test_the_column_says_on_how_many_images_apgd_was_run_and_the_results_are_under_it(folder: Path, text: str) -> None:
    header = cells(text, "Test accuracy")[0]
    expected = ["%", "natural", "PGD-10", "APGD-CE + APGD-T on 100 of 400 images", "gap on validation"]
    assert header == expected
    assert f"{LABEL}: the first two" in text
    study = load_study(folder)
    assert {cell.metric for cell in decisive(study, compare(study))} == {APGD}


def test_both_attacks_are_counted_on_the_same_images(folder: Path, text: str) -> None:
    rows = pq.read_table(folder / "report" / "outcomes.parquet").to_pylist()
    table = {row[0]: row[1:] for row in cells(text, "Test accuracy") if len(row) == 4}
    for arm in GAPS:
        evaluated = [
            [row for row in rows if (row["arm"], row["seed"]) == (arm, seed) and row["robust/apgd"] is not None]
            for seed in range(3)
        ]
        assert [len(part) for part in evaluated] == [EVALUATED] * 3
        pgd = [sum(row["pgd10_prediction"] == row["label"] for row in part) / EVALUATED for part in evaluated]
        apgd = [sum(row["robust/apgd"] for row in part) / EVALUATED for part in evaluated]
        lost = [one - other for one, other in zip(pgd, apgd, strict=True)]
        assert min(lost) > 0
        for cell, values in zip(table[studies.LABELS[arm]], (pgd, apgd, lost), strict=True):
            each = ", ".join(f"{100 * value:.1f}" for value in values)
            assert cell == f"{100 * statistics.fmean(values):.1f} ({each})"


def test_the_gap_in_the_check_nearest_to_the_chosen_epoch_is_a_column(text: str) -> None:
    shown = {row[0].strip("*"): row[-1] for row in cells(text, "Test accuracy") if row[0].startswith("**")}
    for arm, gap in GAPS.items():
        each = ", ".join(f"{100 * gap * seed:.1f}" for seed in (1, 2, 3))
        assert shown[studies.LABELS[arm]] == f"{200 * gap:.1f} ({each})"


def test_arms_of_several_sizes_are_told_apart_and_a_split_of_its_own_is_no_fault(text: str) -> None:
    setting = section(text, "What was compared")
    assert "Task fashion-mnist-5-9 (images of fashion-mnist-5-9-other);" in setting
    trained = [part.split()[-1] for part in setting.split(" training, ")[:-1]]
    assert int(trained[1].replace(",", "")) == 2 * int(trained[0].replace(",", ""))
    assert "Arms that are compared share one split" in setting
    assert "do not share one data split" not in text


def test_a_compared_arm_with_another_split_is_warned_of(folder: Path) -> None:
    told = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(
        json.dumps(told | {"arms": [{**arm, "reference": "autolora"} for arm in told["arms"]]})
    )
    report = write_report(folder).read_text()
    (folder / "study.json").write_text(json.dumps(told))
    assert "The runs do not share one data split" in section(report, "Warnings")
