"""A run that must not see the test split does not open it; one that may leaves every image's outcome."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.orchestration.runs.preflight import check_inputs, find_inputs
from distributed_autolora.orchestration.runs.results import finish
from distributed_autolora.records import AccuracyCount
from distributed_autolora.reporting.run.figure import curves_figure
from distributed_autolora.training.loop import FitResult
from distributed_autolora.training.task_data import TaskData
from tests.training.gloo import run_workers
from tests.training.tasks import changed, data_of, fitted, small_config, write_task


def returned(result: FitResult, data: TaskData | None = None) -> dict[str, Any]:
    weights = {name: value.numpy() for name, value in result.weights.items()}
    row_ids = None if data is None else data.test_row_ids
    parts = {"summary": result.summary, "history": result.history, "samples": result.samples}
    return {**parts, "outcomes": result.outcomes, "weights": weights, "row_ids": row_ids}


def run_folder(path: Path, config: ExperimentConfig) -> RunFolder:
    folder = RunFolder(path / "runs" / "one")
    folder.path.mkdir(parents=True)
    folder.create(config)
    return folder


AWAY = {"uri": "http://127.0.0.1:9", "run_id": "0" * 32}


def test_a_trial_ends_although_the_test_split_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = write_task(tmp_path / "task", train=130)
    config, inputs = find_inputs(changed(small_config(task, epochs=1), evaluation={"test_split": False}))
    (tmp_path / "task" / "test.parquet").write_bytes(b"no Parquet")
    check_inputs(config, inputs)
    result = fitted(config)
    assert (result.summary.test, result.summary.test_images) == (None, None)
    assert result.samples is None
    assert result.outcomes is None
    with pytest.raises(UserError, match=r"test\.parquet"):
        fitted(changed(config, evaluation={"test_split": True}))

    folder = run_folder(tmp_path, config)
    finish(config, folder, returned(result), AWAY)
    assert "test split not opened" in capsys.readouterr().out
    assert {path.name for path in folder.path.iterdir()} == {
        "config.yaml", "run.json", "history.json", "result.json", "model.safetensors", "curves.png"
    }  # fmt: skip
    assert folder.result().cost.forward_passes == result.history[0].passes.forward
    titles = [axes.get_title(loc="left") for axes in curves_figure(result.history, folder.result()).axes]
    assert not [title for title in titles if "test images" in title]


def test_a_judged_run_leaves_what_became_of_every_test_image(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task", train=130, test=37)
    config = small_config(task, epochs=1)
    data, result = data_of(config), fitted(config)
    folder = run_folder(tmp_path, config)
    finish(config, folder, returned(result, data), AWAY)
    table = pq.read_table(folder.path / "outcomes.parquet")
    assert table.column_names == ["row", "row_id", "label", "natural_prediction", "pgd2_prediction"]
    assert table["row"].to_pylist() == list(range(37))
    assert table["row_id"].to_pylist() == [f"test/{row}" for row in range(37)]
    assert table["label"].to_pylist() == [row % 3 for row in range(37)]
    counts = folder.result().test
    assert counts is not None
    for column, count in (("natural_prediction", counts.natural), ("pgd2_prediction", counts.robust)):
        right = np.asarray(table[column]) == np.asarray(table["label"])
        assert AccuracyCount(int(right.sum()), 37) == count
    assert not [path for path in folder.path.iterdir() if path.name.startswith(".")]


def findings_of(folder: str) -> dict[str, Any]:
    config = small_config(folder, epochs=1, method="vanilla")
    result = fitted(changed(config, evaluation={"gradient_similarity_images": 40}), dtype=torch.float64)
    assert result.outcomes is not None
    similarity = [result.history[0].metrics()[name] for name in ("gradient_similarity", "gradient_similarity/batch")]
    outcomes = {name: values.tolist() for name, values in result.outcomes.items()}
    return {"similarity": similarity, "outcomes": outcomes, "counts": result.summary.test}


def test_two_workers_find_the_outcomes_and_the_gradient_similarity_of_one(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task", train=130, test=37)
    alone = findings_of(folder)
    assert alone["outcomes"]["row"] == list(range(37))
    for worker in run_workers(findings_of, 2, folder):
        assert worker["counts"] == alone["counts"]
        assert worker["outcomes"] == alone["outcomes"], "in the order of the table"
        assert worker["similarity"] == pytest.approx(alone["similarity"], rel=1e-7)
