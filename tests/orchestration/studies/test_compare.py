"""A comparison for real: two trials, then the final run of the best one and the report."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from distributed_autolora.orchestration.cluster.processes import end_family
from distributed_autolora.orchestration.runs.folder import RunFolder
from tests.orchestration.runs.test_survival import epochs_of
from tests.orchestration.studies.two_trials import EPOCHS, LRS, NAME
from tests.programs import ROOT, environment, wait_for
from tests.training.tasks import write_task

Entry = dict[str, Any]


@contextmanager
def comparison(folder: Path, *lrs: float) -> Iterator[subprocess.Popen[str]]:
    """Runs the two-trial comparison; ends it and its cluster if they are still there at the end."""
    arguments = map(str, (folder / "home", folder / "task", *lrs))
    command = [sys.executable, "-m", "tests.orchestration.studies.two_trials", *arguments]
    own = environment(folder / "home", PYTHONUNBUFFERED="1")
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=own, stdout=log, stderr=log, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            end_family(process)


def study_folder(folder: Path) -> Path:
    return folder / "home" / "studies" / NAME


def entries(folder: Path) -> list[Entry]:
    file = study_folder(folder) / "runs.json"
    return list(json.loads(file.read_text())["runs"]) if file.is_file() else []


def some_epochs(folder: Path, number: int) -> bool:
    return any(epochs_of(file) >= number for file in study_folder(folder).glob("runs/search-*/history.json"))


def tracked(folder: Path) -> dict[str, Run]:
    client = MlflowClient(f"sqlite:///{folder / 'home' / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments)
    return {str(run.info.run_name): run for run in found if run.data.tags.get("kind") != "evaluation"}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    write_task(folder / "task", train=140)
    with comparison(folder) as process:
        process.wait(200)
    assert process.returncode == 0, (folder / "log.txt").read_text()
    return folder


def test_both_trials_and_the_final_run_of_the_best_one_finish(compared: Path) -> None:
    runs = entries(compared)
    assert [(run["phase"], run["settings"].get("optimization.lr")) for run in runs[:2]] == [
        ("search", lr) for lr in LRS
    ]
    assert [run["status"] for run in runs] == ["finished"] * 3
    histories = [RunFolder(study_folder(compared) / "runs" / run["run"]).history() for run in runs]
    assert [[record.epoch for record in history] for history in histories] == [list(range(1, EPOCHS + 1))] * 3
    scores = [history[-1].best_robust_accuracy for history in histories[:2]]
    assert runs[2]["settings"] == runs[scores.index(max(scores))]["settings"]


def test_only_the_final_run_has_opened_the_test_split(compared: Path) -> None:
    for run in entries(compared):
        folder = study_folder(compared) / "runs" / run["run"]
        result = json.loads((folder / "result.json").read_text())
        assert (result["test"] is not None) == (run["phase"] == "final")
        assert (folder / "outcomes.parquet").exists() == (run["phase"] == "final")
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["evaluation"]["test_split"] == (run["phase"] == "final")


def test_mlflow_has_the_study_with_its_runs_below_it(compared: Path) -> None:
    runs = tracked(compared)
    parent = runs.pop(NAME)
    assert {run.info.status for run in [parent, *runs.values()]} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert sorted(run.data.tags["phase"] for run in runs.values()) == ["final", "search", "search"]
    for run in runs.values():
        assert {"study", "method", "task", "seed", "arm"} <= set(run.data.tags)
        assert run.data.tags["study"] == parent.data.tags["study"] == "two_trials"
    artifacts = MlflowClient(f"sqlite:///{compared / 'home' / 'mlflow.db'}").list_artifacts(
        parent.info.run_id, "report"
    )
    assert {Path(artifact.path).name for artifact in artifacts} >= {"report.md", "results.csv"}


def test_the_log_has_a_line_for_each_run_and_nothing_of_tunes_own(compared: Path) -> None:
    lines = (compared / "log.txt").read_text().splitlines()
    ended = [line for line in lines if re.match(r"\[\d", line)]
    assert [line[:5] for line in ended] == ["[1/3]", "[2/3]", "[3/3]"]
    assert all(" val PGD-2 " in line and " in " in line for line in ended)
    others = [line for line in lines if line.strip() and line not in ended]
    others = [line for line in others if not line.startswith("warning: ")]
    assert [line.split()[0] for line in others] == ["Study", "Report:"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_stopped_comparison_ends_with_130_and_the_same_command_continues_it(tmp_path: Path) -> None:
    write_task(tmp_path / "task", train=140)
    with comparison(tmp_path) as process:
        wait_for(lambda: some_epochs(tmp_path, 1), "an epoch of a trial")
        os.kill(process.pid, signal.SIGTERM)
        process.wait(90)
    assert process.returncode == 130, (tmp_path / "log.txt").read_text()
    begun = {name: run for name, run in tracked(tmp_path).items() if name.startswith("search")}
    assert tracked(tmp_path)[NAME].info.status == "KILLED"
    assert {run.info.status for run in begun.values()} == {"KILLED"}
    assert {run["status"] for run in entries(tmp_path)} == {"pending"}
    with comparison(tmp_path) as process:
        process.wait(400)
    assert process.returncode == 0, (tmp_path / "log.txt").read_text()
    assert [run["status"] for run in entries(tmp_path)] == ["finished"] * 3
    ended = tracked(tmp_path)
    assert {run.info.status for run in ended.values()} == {"FINISHED"}
    assert {ended[name].info.run_id for name in begun} == {run.info.run_id for run in begun.values()}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_trial_that_diverges_is_no_number_and_does_not_end_the_others(tmp_path: Path) -> None:
    write_task(tmp_path / "task", train=140)
    with comparison(tmp_path, 1e8, 0.05) as process:
        process.wait(400)
    log = (tmp_path / "log.txt").read_text()
    assert process.returncode == 0, log
    runs = entries(tmp_path)
    assert [run["status"] for run in runs] == ["diverged", "finished", "finished"]
    assert "finite" in runs[0]["error"]
    assert runs[2]["settings"] == {"optimization.lr": 0.05}
    assert "DIVERGED" in log
    assert (study_folder(tmp_path) / "report" / "report.md").is_file()
    states = {name: run.info.status for name, run in tracked(tmp_path).items()}
    assert states == {NAME: "FINISHED", **{run["run"]: "FINISHED" for run in runs[1:]}, runs[0]["run"]: "FAILED"}
