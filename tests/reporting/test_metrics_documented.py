"""docs/metrics.md names every number that a run and a study write, and none that no run writes."""

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.data.catalog import embedded_backbone
from distributed_autolora.orchestration.mlflow_tracking import default_tracking_uri, log_result, open_run
from distributed_autolora.orchestration.mlflow_tracking.connection import connect
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.orchestration.runs.results import finish
from distributed_autolora.reporting.study.loading import load_study
from distributed_autolora.reporting.study.report import results_csv
from distributed_autolora.training.loop import FitResult, fit
from distributed_autolora.training.reporter import NoReports
from distributed_autolora.training.task_data import TaskData
from tests.orchestration.mlflow_tracking.tracking_server import NOT_CHARTS
from tests.reporting.study.studies import study
from tests.training.tasks import small_config, write_task
from tests.training.test_no_test_split import AWAY, returned, run_folder

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
EPOCH, RESULT, STUDY = "Once an epoch", "result.json", "results.csv"
BY_EPOCH, FINISHED = "MLflow, once an epoch", "MLflow, once a run"
METHODS = ("autolora", "twins", "vanilla")
GROUPS = ("cost", "mlflow")


def documented(heading: str) -> set[str]:
    _, found, rest = DOCUMENT.read_text().partition(f"\n## {heading}\n")
    assert found, heading
    cells = [line.split("|")[1] for line in rest.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def means(pattern: str, name: str) -> bool:
    """Tells whether `val/robust_accuracy/<attack>` and the like stands for a name."""
    return re.fullmatch("[^/]+".join(map(re.escape, re.split(r"<\w+>", pattern))), name) is not None


def unknown(names: Iterable[str], patterns: set[str]) -> list[str]:
    return sorted(name for name in names if not any(means(pattern, name) for pattern in patterns))


def never_written(patterns: set[str], names: Iterable[str]) -> list[str]:
    names = set(names)
    return sorted(pattern for pattern in patterns if not any(means(pattern, name) for name in names))


def config_of(task: str, method: str) -> ExperimentConfig:
    config = small_config(task, epochs=1, method=method)
    images = 0 if method == "autolora" else 3
    return replace(
        config,
        model=replace(config.model, mean=(0.286,), std=(0.353,)),  # the shipped backbone's
        evaluation=replace(config.evaluation, linear_head=True, gradient_similarity_images=images),
    )


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[FitResult, TaskData]]:
    task = write_task(tmp_path_factory.mktemp("data") / "task", train=60, test=9)
    made = {}
    for method in METHODS:
        config = config_of(task, method)
        data = TaskData(config, task, torch.device("cpu"))
        made[method] = fit(config, data, str(embedded_backbone()), NoReports()), data
    return made


@pytest.fixture(scope="module")
def folder(fits: dict[str, tuple[FitResult, TaskData]], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    result, data = fits["autolora"]
    config = config_of("task", "autolora")
    made = run_folder(tmp_path_factory.mktemp("home"), config)
    finish(config, made, returned(result, data), AWAY)
    return made


def names_of(result: dict[str, Any]) -> set[str]:
    groups = {f"{group}.{name}" for group in GROUPS for name in result[group]}
    return {name for name in result if name not in GROUPS} | groups


def test_every_key_of_a_record_is_documented_and_none_besides(fits: dict[str, tuple[FitResult, TaskData]]) -> None:
    written = {
        name
        for result, _ in fits.values()
        for record in result.history
        for name in replace(record, restored_epoch=1).metrics()
    }
    assert unknown(written, documented(EPOCH)) == []
    assert never_written(documented(EPOCH), written) == []


def test_the_documented_names_of_a_result_are_those_of_a_run(folder: RunFolder) -> None:
    names = names_of(folder.read("result.json"))
    assert unknown(names, documented(RESULT)) == []
    assert never_written(documented(RESULT), names) == []


def test_the_documented_metrics_in_mlflow_are_those_of_a_run(folder: RunFolder, tmp_path: Path) -> None:
    uri = default_tracking_uri(tmp_path)
    run_id = open_run(uri=uri, experiment="tests", run_name="one", params={}, tags={}, run_id=None, home=tmp_path)
    log_result(uri, run_id, folder.result(), folder.history(), [], {})
    metrics = set(connect(uri).get_run(run_id).data.metrics)
    assert unknown(metrics, documented(EPOCH) | documented(BY_EPOCH) | documented(FINISHED)) == []
    assert not metrics & NOT_CHARTS
    assert never_written(documented(BY_EPOCH) | documented(FINISHED), metrics) == []


def test_the_documented_columns_of_a_study_are_those_of_its_table(tmp_path: Path) -> None:
    columns = next(csv.reader(io.StringIO(results_csv(load_study(study(tmp_path / "study", images=20))))))
    assert unknown(columns, documented(STUDY)) == []
    assert never_written(documented(STUDY), columns) == []


def test_a_name_that_is_not_documented_is_found() -> None:
    patterns = {"best_epoch", "val/robust_accuracy/<attack>"}
    assert unknown(["best_epoch", "val/robust_accuracy/pgd10"], patterns) == []
    assert unknown(["best_epochs", "val/robust_accuracy/pgd10/low", "robust_accuracy/pgd10"], patterns) == [
        "best_epochs",
        "robust_accuracy/pgd10",
        "val/robust_accuracy/pgd10/low",
    ]
    assert never_written(patterns, ["best_epoch"]) == ["val/robust_accuracy/<attack>"]
