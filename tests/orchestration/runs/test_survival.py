"""Whatever is killed, the run ends with the weights it would have had."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from torch import Tensor

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.config.experiment import config_text
from distributed_autolora.models import read_weights
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.records import EpochRecord
from tests.programs import ROOT, below, environment, wait_for
from tests.reporting.runs import without_times
from tests.training.gloo import run_workers
from tests.training.tasks import changed, fitted, small_config, write_task
from tests.training.test_resume import FolderReporter

EPOCHS = 6


def steered(task: str) -> ExperimentConfig:
    """Returns a config whose every epoch is checked by a stronger attack and decided on image by image."""
    return changed(small_config(task, epochs=EPOCHS, global_batch_size=32), schedule={"rule": "paired"})


def uninterrupted(task: str, folder: str) -> tuple[dict[str, Tensor], list[EpochRecord]]:
    result = fitted(steered(task), FolderReporter(Path(folder)))
    return dict(result.weights), result.history


@contextmanager
def driver(folder: Path, stderr: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """Runs `python jobs/finetune.py` on a local Ray of its own; kills it if it is still there at the end."""
    command = [sys.executable, "jobs/finetune.py", "--config", str(folder / "config.yaml"), "--run.name", "mine"]
    command += ["--evaluate", "none"]
    own = environment(folder / "home")
    process = subprocess.Popen(command, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def titled(driver: int, title: bytes) -> list[int]:
    titles = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in below(driver)}
    return sorted(pid for pid, own in titles.items() if own.startswith(title))


def tracked_run(home: Path) -> Run:
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "distributed_autolora"]
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def write_config(folder: Path) -> None:
    """Writes the config of the run that `driver` runs."""
    config = steered(write_task(folder / "task", train=140))
    scaling = {"check_finite_every": 1, "checkpoint_every_s": 0.5}
    (folder / "config.yaml").write_text(config_text(changed(config, scaling=scaling)))


def epochs_of(history: Path) -> int:
    return len(RunFolder(history.parent).history())


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_ends_with_status_130_and_is_marked_killed(tmp_path: Path, number: signal.Signals) -> None:
    write_config(tmp_path)
    with driver(tmp_path) as process:
        wait_for(lambda: epochs_of(tmp_path / "home" / "runs" / "mine" / "history.json") >= 1, "epoch 1")
        os.kill(process.pid, number)
        process.wait(60)
    assert process.returncode == 130
    assert tracked_run(tmp_path / "home").info.status == "KILLED"


def assert_as_uninterrupted(run: Path, task: Path, checkpoints: Path) -> None:
    weights, history = run_workers(uninterrupted, 2, str(task), str(checkpoints))[0]
    assert without_times(RunFolder(run).history()) == without_times(history)
    for name, value in read_weights(run / "model.safetensors").items():
        assert torch.equal(value, weights[f"backbone.{name}"]), name


def wait_for_an_epoch(history: Path, after: str) -> None:
    before = epochs_of(history)
    wait_for(lambda: epochs_of(history) > before, f"an epoch after {after}")


@pytest.fixture(scope="module")
def survivor(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run on Ray whose worker is killed, then its driver, and that is then finished."""
    folder = tmp_path_factory.mktemp("survival")
    write_config(folder)
    history = folder / "home" / "runs" / "mine" / "history.json"
    with driver(folder) as process:
        wait_for_an_epoch(history, "the start")
        os.kill(titled(process.pid, b"ray::RayTrainWorker")[-1], signal.SIGKILL)
        wait_for_an_epoch(history, "the worker's death")
        os.kill(process.pid, signal.SIGKILL)
    assert not (history.parent / "result.json").exists(), "the run must be killed before its end"
    with driver(folder) as process:
        output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    return history.parent, output


@pytest.mark.long
def test_a_killed_controller_ends_the_command_in_one_line_and_the_same_command_goes_on(tmp_path: Path) -> None:
    write_config(tmp_path)
    folder = tmp_path / "home" / "runs" / "mine"
    with driver(tmp_path) as process:
        wait_for_an_epoch(folder / "history.json", "the start")
        os.kill(titled(process.pid, b"ray::TrainController")[0], signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in output
    assert (folder / "error.txt").is_file()
    with driver(tmp_path) as process:
        output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert epochs_of(folder / "history.json") == EPOCHS
    assert not (folder / "error.txt").exists()


@pytest.mark.timeout(600)  # with the shared run's time on a busy machine
def test_a_killed_run_ends_bit_for_bit_as_an_uninterrupted_one(survivor: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = survivor
    assert_as_uninterrupted(folder, folder.parents[2] / "task", tmp_path / "checkpoints")


def test_mlflow_has_each_step_once_in_one_run(survivor: tuple[Path, str]) -> None:
    folder, _ = survivor
    run = tracked_run(folder.parents[1])
    client = MlflowClient(f"sqlite:///{folder.parents[1] / 'mlflow.db'}")
    assert run.info.status == "FINISHED"
    for key in ("lr", "train/loss/total", "val/robust_accuracy_pgd2"):
        assert [metric.step for metric in client.get_metric_history(run.info.run_id, key)] == list(range(1, EPOCHS + 1))


def test_the_log_says_that_the_run_goes_on_and_how_it_ended(survivor: tuple[Path, str]) -> None:
    _, output = survivor
    assert 'Run "mine" continues after epoch' in output
    assert "PGD-2" in output
    assert max(map(len, output.splitlines()[1:])) <= 80


def test_a_finished_run_shows_its_table_and_runs_afresh_under_a_new_number(survivor: tuple[Path, str]) -> None:
    folder, _ = survivor
    with driver(folder.parents[2]) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "is finished" in output
    assert "--fresh" in output
