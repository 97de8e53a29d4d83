"""A run that is stopped and started again ends with the weights it would have had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distributed_autolora.errors import UserError
from distributed_autolora.training import distributed
from distributed_autolora.training.checkpoint import TrainingState, momentum_buffers, restore_momentum
from distributed_autolora.training.loop import fit
from distributed_autolora.training.task_data import TaskData
from tests.training.gloo import run_workers
from tests.training.tasks import small_config, write_task


class StoppedError(Exception):
    """Stands for the death of a process after an epoch's checkpoint."""


class FolderReporter:
    """Keeps checkpoints in a folder, one an epoch; dies after `stop_after` epochs."""

    def __init__(self, folder: Path, stop_after: int | None = None) -> None:
        self.folder, self.stop_after = folder, stop_after
        folder.mkdir(parents=True, exist_ok=True)

    def latest(self) -> TrainingState | None:
        newest = max(self.folder.iterdir(), default=None)
        return None if newest is None else TrainingState.load(newest)

    def report(self, history: list[dict[str, Any]], write: Callable[[Path], None]) -> None:
        checkpoint = self.folder / f"{len(history):06d}"
        if distributed.rank() == 0:
            checkpoint.mkdir()
            write(checkpoint)
        distributed.sum_over_workers(torch.zeros(1))
        if len(history) == self.stop_after:
            raise StoppedError


def run(
    task: str, folder: Path, stop_after: int | None = None, epochs: int = 5, method: str = "autolora"
) -> tuple[dict[str, Tensor], list[dict[str, Any]]] | None:
    config = small_config(task, epochs=epochs, global_batch_size=32, method=method)
    data = TaskData(config, task, torch.device("cpu"))
    try:
        result = fit(config, data, None, FolderReporter(folder, stop_after))
    except StoppedError:
        return None
    records = [
        {key: value for key, value in record.items() if not key.startswith(("seconds", "images"))}
        for record in result.history
    ]
    return dict(result.weights), records


def with_and_without_stops(
    task: str, folder: str, stops: tuple[int, ...], epochs: int, method: str = "autolora"
) -> tuple[Any, Any]:
    uninterrupted = run(task, Path(folder) / "uninterrupted", epochs=epochs, method=method)
    for stop_after in stops:
        assert run(task, Path(folder) / "stopped", stop_after, epochs, method) is None
    return uninterrupted, run(task, Path(folder) / "stopped", epochs=epochs, method=method)


def assert_same(one: Any, other: Any) -> None:
    assert one[1] == other[1]
    for name, value in one[0].items():
        assert torch.equal(value, other[0][name]), name


@pytest.mark.parametrize("method", ["autolora", "twins"])
def test_a_stopped_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path, method: str) -> None:
    task = write_task(tmp_path / "task", train=140)
    one, other = with_and_without_stops(task, str(tmp_path), (1, 3), 5, method)
    assert_same(one, other)
    assert any(record["restored"] for record in one[1]), "the test should also cross a restore"


def test_three_workers_resume_bit_for_bit(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task", train=140)
    for one, other in run_workers(with_and_without_stops, 3, task, str(tmp_path), (1,), 3):
        assert_same(one, other)


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


def test_a_damaged_checkpoint_and_one_of_another_run_are_refused(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task", train=140)
    assert run(task, tmp_path / "run", stop_after=1) is None
    checkpoint = tmp_path / "run" / "000001"
    (checkpoint / "state.json").write_text((checkpoint / "state.json").read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(UserError, match=r"of another run.*--fresh"):
        run(task, tmp_path / "run")
    tensors = checkpoint / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"000001 cannot be read.*--fresh"):
        run(task, tmp_path / "run")
