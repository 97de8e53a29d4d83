"""A run that is stopped and started again ends with the weights it would have had."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from distributed_autolora.errors import StorageError, UserError
from distributed_autolora.training.checkpoint import TrainingState, momentum_buffers, restore_momentum, snapshot
from distributed_autolora.training.distributed import collectives
from distributed_autolora.training.loop import run_epoch
from tests.reporting import runs
from tests.training.gloo import run_workers
from tests.training.tasks import changed, fitted, small_config, trainer_of, write_task


class StoppedError(Exception):
    """Stands for the death of a process after a checkpoint."""


Position = tuple[int, int]
"""Epochs, and steps of the next one."""


class FolderReporter:
    """Keeps checkpoints in a folder; dies after the one at `stop`."""

    def __init__(self, folder: Path, stop: Position | None = None) -> None:
        self.folder, self.stop = folder, stop
        folder.mkdir(parents=True, exist_ok=True)

    def latest(self) -> TrainingState | None:
        newest = max(self.folder.iterdir(), default=None)
        return None if newest is None else TrainingState.load(newest)

    def report(self, state: TrainingState) -> None:
        position = len(state.history), state.step
        checkpoint = self.folder / f"{position[0]:06d}-{position[1]:06d}"
        if collectives.rank() == 0:
            checkpoint.mkdir()
            state.save(checkpoint)
        collectives.sum_over_workers(torch.zeros(1))
        if position == self.stop:
            raise StoppedError

    def is_machine_leaving(self) -> bool:
        return False


def run(
    task: str,
    folder: Path,
    stop: Position | None = None,
    *,
    epochs: int = 5,
    method: str = "autolora",
    rule: Literal["released", "paired"] = "released",
    checkpoint_every_s: float = 1e9,
    dtype: torch.dtype = torch.float32,
    switches: dict[str, Any] | None = None,
) -> tuple[dict[str, Tensor], list[dict[str, Any]]] | None:
    config = small_config(task, epochs=epochs, global_batch_size=32, method=method, **(switches or {}))
    scaling = {"check_finite_every": 1, "checkpoint_every_s": checkpoint_every_s}
    try:
        result = fitted(changed(config, schedule={"rule": rule}, scaling=scaling), FolderReporter(folder, stop), dtype)
    except StoppedError:
        return None
    return dict(result.weights), runs.without_times(result.history)


def with_and_without_stops(
    task: str, folder: str, stops: tuple[Position, ...], epochs: int, method: str = "autolora"
) -> tuple[Any, Any]:
    every_s = 0.0 if any(step for _, step in stops) else 1e9
    uninterrupted = run(task, Path(folder) / "uninterrupted", epochs=epochs, method=method)
    for stop in stops:
        stopped = run(task, Path(folder) / "stopped", stop, epochs=epochs, method=method, checkpoint_every_s=every_s)
        assert stopped is None
    return uninterrupted, run(task, Path(folder) / "stopped", epochs=epochs, method=method)


def assert_same(one: Any, other: Any) -> None:
    assert one[1] == other[1]
    for name, value in one[0].items():
        assert torch.equal(value, other[0][name]), name


@pytest.mark.parametrize("method", ["autolora", "twins"])
def test_a_run_stopped_within_epochs_and_after_one_ends_with_the_weights_and_records_of_an_uninterrupted_one(
    task: str, tmp_path: Path, method: str
) -> None:
    """Also in the first epoch, whose loss weights come from a measurement before its first step, and after the last."""
    one, other = with_and_without_stops(task, str(tmp_path), ((0, 1), (0, 4), (2, 2), (3, 0)), 5, method)
    assert_same(one, other)
    assert any(record["restored"] for record in one[1]), "the test should also cross a restore"


def part_of_run(task: str, folder: str, stop: Position | None) -> list[float]:
    """Returns the mean loss of each epoch; none of a run that is stopped."""
    result = run(task, Path(folder), stop, epochs=2, checkpoint_every_s=0.0, dtype=torch.float64)
    return [record["train/loss/total"] for record in result[1]] if result else []


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_workers_resumes_within_an_epoch(task: str, tmp_path: Path, before: int, after: int) -> None:
    """Rounding differs from then on; the rows of both parts are in the epoch's mean losses once."""
    alone = part_of_run(task, str(tmp_path / "alone"), None)
    assert run_workers(part_of_run, before, task, str(tmp_path / "run"), (0, 2)) == [[]] * before
    for losses in run_workers(part_of_run, after, task, str(tmp_path / "run"), None):
        assert losses == pytest.approx(alone, rel=1e-9)


def test_time_and_notice_decide_when_a_checkpoint_is_written_within_an_epoch(task: str, tmp_path: Path) -> None:
    run(task, tmp_path / "seldom", epochs=1)
    run(task, tmp_path / "always", epochs=1, checkpoint_every_s=0.0)
    positions = [sorted(one.name for one in (tmp_path / name).iterdir()) for name in ("seldom", "always")]
    assert positions[0] == ["000001-000000"]
    assert positions[1] == [*(f"000000-00000{step}" for step in (1, 2, 3, 4)), "000001-000000"]


class Leaving(FolderReporter):
    """Is told of a leaving machine from the second question on."""

    asked = 0

    def is_machine_leaving(self) -> bool:
        self.asked += 1
        return self.asked > 1


def test_a_notice_brings_one_checkpoint_at_once(task: str, tmp_path: Path) -> None:
    config = small_config(task, epochs=1, global_batch_size=32)
    fitted(changed(config, scaling={"check_finite_every": 1}), Leaving(tmp_path / "run"))
    assert sorted(one.name for one in (tmp_path / "run").iterdir()) == ["000000-000002", "000001-000000"]


@pytest.mark.parametrize("method", ["autolora", "twins"])
def test_three_workers_resume_within_an_epoch_and_after_one_bit_for_bit(tmp_path: Path, method: str) -> None:
    task = write_task(tmp_path / "task", train=100)
    for one, other in run_workers(with_and_without_stops, 3, task, str(tmp_path), ((0, 2), (1, 0)), 2, method):
        assert_same(one, other)


def test_fixed_loss_weights_survive_a_stop_within_the_first_epoch(task: str, tmp_path: Path) -> None:
    fixed = {"natural_weight": 0.25, "kl_weight": 3.0}
    whole = run(task, tmp_path / "whole", epochs=1, switches=fixed)
    assert run(task, tmp_path / "run", (0, 2), epochs=1, checkpoint_every_s=0.0, switches=fixed) is None
    resumed = run(task, tmp_path / "run", epochs=1, switches=fixed)
    assert_same(whole, resumed)
    assert resumed is not None
    assert (resumed[1][0]["natural_weight"], resumed[1][0]["kl_weight"]) == (0.25, 3.0)


def test_a_restore_puts_the_chosen_epoch_s_network_back(task: str) -> None:
    config = small_config(task, epochs=8, global_batch_size=32)
    trainer = trainer_of(config)
    after: dict[int, dict[str, Tensor]] = {}
    while not trainer.is_finished:
        run_epoch(trainer)
        record = trainer.history[-1]
        after[record.epoch] = snapshot(trainer.objective)
        if record.restored_epoch not in (None, record.epoch):
            break
    assert record.restored_epoch is not None
    assert record.restored_epoch < record.epoch, "the test needs a restore of an earlier epoch"
    for name, value in trainer.objective.state_dict().items():
        assert torch.equal(value, after[record.restored_epoch][name]), name


def test_momentum_comes_back_in_the_memory_layout_of_its_parameter(tmp_path: Path) -> None:
    """A file keeps no layout; a fused optimiser on a GPU would add the numbers of two layouts by position."""
    layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.rand(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    before = {name: value.clone() for name, value in momentum_buffers(layer, optimizer).items()}
    TrainingState({}, {}, before, [], {}).save(tmp_path)
    restore_momentum(layer, optimizer, TrainingState.load(tmp_path).momentum)
    for name, value in momentum_buffers(layer, optimizer).items():
        assert torch.equal(value, before[name])
        assert value.stride() == layer.get_parameter(name).stride()


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_checkpoint_that_cannot_be_written_is_a_storage_error_and_leaves_nothing_behind(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).mkdir()  # replacing a folder by a file fails, for root as well
    with pytest.raises(StorageError, match=rf"{name} cannot be written"):
        TrainingState({"w": torch.zeros(1)}, {}, {}, [], {}).save(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_checkpoint_and_one_of_another_run_are_refused(task: str, tmp_path: Path) -> None:
    assert run(task, tmp_path / "run", stop=(1, 0)) is None
    checkpoint = tmp_path / "run" / "000001-000000"
    (checkpoint / "state.json").write_text((checkpoint / "state.json").read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(UserError, match=r"of another run.*--fresh"):
        run(task, tmp_path / "run")
    tensors = checkpoint / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"000001-000000 cannot be read.*--fresh"):
        run(task, tmp_path / "run")
