"""A checkpoint that lost its last writes is skipped for the one before it, and for no other reason."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from ray.train import Checkpoint, CheckpointConfig
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext
from ray.train.v2._internal.execution.training_report import _TrainingReport
from safetensors.torch import save_file

from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.mlflow_tracking import MetricWriter, open_run
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.orchestration.runs.ray_checkpoints import (
    remove_unregistered,
    restore_index,
    skip_broken,
)
from distributed_autolora.training.checkpoint import TrainingState
from distributed_autolora.training.checkpoint_integrity import fingerprint
from distributed_autolora.training.loop import FitResult
from tests.reporting import runs
from tests.training.tasks import changed, fitted, small_config, write_task
from tests.training.test_resume import StoppedError

EPOCHS = 3


class ListReporter:
    """Keeps checkpoints on Ray Train's own list, without a cluster, and dies after a number of reports.

    Args:
        run: the run's folder.
        writer: takes the metrics, as the controller's does.
        reports: after which it dies.
    """

    def __init__(self, run: Path, writer: MetricWriter | None = None, reports: int = 1000) -> None:
        self._run, self._writer, self._left = run, writer, reports
        (run / "train").mkdir(parents=True, exist_ok=True)
        storage = StorageContext(str(run), "train")
        self._list = CheckpointManager(CheckpointConfig(num_to_keep=2), storage)

    def latest(self) -> TrainingState | None:
        newest = self._list.latest_checkpoint_result
        return None if newest is None else TrainingState.load(Path(newest.checkpoint.path))

    def report(self, state: TrainingState) -> None:
        folder = self._run / "train" / f"checkpoint_{len(state.history):06d}_{state.step:06d}"
        folder.mkdir()
        state.save(folder)
        asyncio.run(self._register(Checkpoint(str(folder)), {"epoch": len(state.history)}))
        RunFolder(self._run).write_history(state.history)
        if self._writer is not None:
            self._writer.send(state.history)
        self._left -= 1
        if self._left == 0:
            raise StoppedError

    async def _register(self, checkpoint: Checkpoint, metrics: dict[str, Any]) -> None:
        self._list.register_checkpoint(_TrainingReport(checkpoint, metrics, validation=False))

    def is_machine_leaving(self) -> bool:
        return False


def train(task: str, reporter: ListReporter, every_s: float = 1e9) -> FitResult:
    config = small_config(task, epochs=EPOCHS, global_batch_size=32)
    return fitted(changed(config, scaling={"check_finite_every": 1, "checkpoint_every_s": every_s}), reporter)


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "train").glob("checkpoint_0*"))


def start_again(run: Path) -> list[str]:
    restore_index(run)
    warnings = skip_broken(run)
    remove_unregistered(run)
    return warnings


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def zero(file: Path) -> None:
    """Leaves what a file system does that knew a file's length but had not written its last blocks."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_task(tmp_path_factory.mktemp("task") / "task", train=140)


@pytest.mark.parametrize("every_s", [1e9, pytest.param(0.0, marks=pytest.mark.long)], ids=["after", "within"])
def test_a_run_goes_on_from_the_checkpoint_before_a_broken_one_to_the_same_end(
    task: str, tmp_path: Path, every_s: float
) -> None:
    run, uri = tmp_path / "run", f"sqlite:///{tmp_path / 'mlflow.db'}"
    run_id = open_run(uri=uri, experiment="e", run_name="r", params={}, tags={}, run_id=None, home=tmp_path)
    alone = train(task, ListReporter(tmp_path / "alone"))
    with pytest.raises(StoppedError):
        train(task, ListReporter(run, MetricWriter(uri, run_id), reports=2 if every_s else 10), every_s)
    older, newest = checkpoints(run)
    zero(newest / "state.safetensors")
    (warning,) = start_again(run)
    assert str(newest) in warning
    assert "state.safetensors holds other bytes than were written" in warning
    expected = "after epoch 1." if every_s else "after epoch 1 and 4 steps of the next."
    assert warning.endswith(f"resumes from the one before, {expected}")
    assert checkpoints(run) == [older], "its name must be free for the one that is written in its place"
    assert len(RunFolder(run).history()) == 1

    resumed = train(task, ListReporter(run, MetricWriter(uri, run_id)))
    for name, value in alone.weights.items():
        assert torch.equal(value, resumed.weights[name]), name
    first, second = (runs.without_times(one.history) for one in (alone, resumed))
    assert first == second
    client = MlflowClient(uri)
    for key in ("lr", "train/loss/total", "val/robust_accuracy_pgd2", "seconds/epoch"):
        assert [point.step for point in client.get_metric_history(run_id, key)] == [1, 2, 3], key
    losses = {point.step: point.value for point in client.get_metric_history(run_id, "train/loss/total")}
    assert losses == {record.epoch: record.losses["total"] for record in resumed.history}


def two_checkpoints(run: Path) -> tuple[Path, Path]:
    reporter = ListReporter(run)
    for epoch in (1, 2):
        outcomes = torch.zeros((epoch, 1), dtype=torch.bool)
        weights = {"w": torch.arange(4000.0) + epoch}
        state = TrainingState(
            weights, {}, {}, runs.history(epoch), {"seed": 0}, outcomes=outcomes, newly_broken=outcomes
        )
        reporter.report(state)
    older, newest = checkpoints(run)
    return older, newest


@pytest.mark.parametrize("damage", [cut, zero, Path.unlink, lambda file: file.write_bytes(b"")])
@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_whatever_a_loss_of_power_leaves_of_a_checkpoint_is_found(
    tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    older, newest = two_checkpoints(tmp_path)
    damage(newest / name)
    (warning,) = start_again(tmp_path)
    assert f"{newest} is broken ({name} " in warning
    assert checkpoints(tmp_path) == [older]
    latest = ListReporter(tmp_path).latest()
    assert latest is not None
    assert latest.history == runs.history(1)


def test_a_checkpoint_whose_folder_is_gone_is_skipped(tmp_path: Path) -> None:
    older, newest = two_checkpoints(tmp_path)
    newest.rename(tmp_path / "elsewhere")
    assert len(start_again(tmp_path)) == 1
    assert ListReporter(tmp_path).latest() is not None, "Ray Train itself refuses a list with a missing folder"
    assert checkpoints(tmp_path) == [older]


def test_a_run_without_a_whole_checkpoint_is_refused_and_keeps_all_its_files(tmp_path: Path) -> None:
    for folder in two_checkpoints(tmp_path):
        cut(folder / "state.safetensors")
    assert start_again(tmp_path) == []
    assert len(checkpoints(tmp_path)) == 2
    with pytest.raises(UserError, match=r"000002_000000 cannot be read .state.safetensors has .* bytes of .*--fresh"):
        ListReporter(tmp_path).latest()


def test_a_checkpoint_of_an_earlier_version_or_with_another_number_of_epochs_is_refused_in_a_sentence(
    tmp_path: Path,
) -> None:
    state = TrainingState({"w": torch.zeros(3)}, {}, {}, runs.history(1), {"seed": 0})
    state.save(tmp_path)
    with pytest.raises(
        UserError, match=r"outcomes of 0 epochs and the records of 1, .* start it afresh with --fresh\.$"
    ):
        TrainingState.load(tmp_path)
    replace(state, outcomes=torch.zeros((1, 1), dtype=torch.bool)).save(tmp_path)
    with pytest.raises(UserError, match="holds the validation images newly broken by the stronger attack of 0 epochs"):
        TrainingState.load(tmp_path)
    save_file({"model/w": torch.zeros(3)}, tmp_path / "state.safetensors")
    values = json.loads((tmp_path / "state.json").read_text()) | {
        "tensors": fingerprint(tmp_path / "state.safetensors")
    }
    (tmp_path / "state.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"was written by an earlier version .* start it afresh with --fresh\.$"):
        TrainingState.load(tmp_path)
    del values["tensors"]
    (tmp_path / "state.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r'state.json is incomplete: it has no "tensors", as where an earlier version'):
        TrainingState.load(tmp_path)


def test_whole_checkpoints_stay_and_so_does_one_that_the_disk_does_not_give_or_another_run_wrote(
    tmp_path: Path,
) -> None:
    older, newest = two_checkpoints(tmp_path)
    assert start_again(tmp_path) == []
    values = newest / "state.json"
    kept = values.read_text()
    values.write_text(kept.replace('"seed": 0', '"seed": 1'))
    assert start_again(tmp_path) == []
    # Reading a folder fails with EISDIR, for root as well: an error of the system, not of the content.
    values.unlink()
    values.mkdir()
    assert start_again(tmp_path) == []
    assert checkpoints(tmp_path) == [older, newest]


def test_a_list_that_cannot_be_read_is_an_error_and_not_a_new_start(tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    snapshot = tmp_path / "train" / "checkpoint_manager_snapshot.json"
    (tmp_path / "snapshot_copy.json").mkdir()
    snapshot.write_text("{")
    with pytest.raises(UserError, match=r"checkpoint index .* cannot be read"):
        restore_index(tmp_path)
    assert snapshot.exists()
