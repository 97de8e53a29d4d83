"""An error that would come again ends a run at once; a lost process, connection or disk is worth a restart."""

import errno
import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist
from ray.train import UserCallback
from torch import nn
from torch.multiprocessing.spawn import start_processes

from distributed_autolora.config import ScalingConfig
from distributed_autolora.errors import RunFailedError, UserError, cannot_write, kind_of
from distributed_autolora.orchestration.cluster import connection
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.orchestration.runs.ray_trainer import may_be_cured_by_a_restart, train_on_ray
from tests.training.tasks import small_config, write_task


def lose_a_peer(rank: int, folder: str) -> None:
    """Two processes work together until the second is gone; the first writes down how its error is judged."""
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=60), rank=rank, world_size=2)
    dist.all_reduce(torch.ones(1))
    if rank == 1:
        os._exit(0)
    try:
        while True:
            dist.all_reduce(torch.ones(1))
    except RuntimeError as error:
        (Path(folder) / "judged.json").write_text(json.dumps([str(error), may_be_cured_by_a_restart(error)]))


def test_a_lost_peer_is_worth_a_restart(tmp_path: Path) -> None:
    start_processes(lose_a_peer, (str(tmp_path),), nprocs=2, start_method="forkserver")
    message, is_worth_it = json.loads((tmp_path / "judged.json").read_text())
    assert is_worth_it, message


def test_a_lost_process_and_a_failing_disk_are_worth_a_restart() -> None:
    assert may_be_cured_by_a_restart(ray.exceptions.ActorDiedError())
    assert may_be_cured_by_a_restart(OSError(5, "Input/output error"))


def test_a_file_that_the_system_could_not_read_is_worth_a_restart_and_a_missing_one_is_not(tmp_path: Path) -> None:
    failed, missing = OSError(errno.EIO, "Input/output error"), FileNotFoundError(errno.ENOENT, "No such file")
    assert may_be_cured_by_a_restart(kind_of(failed)("the checkpoint cannot be read"))
    assert not may_be_cured_by_a_restart(kind_of(missing)("the data cannot be read"))
    assert may_be_cured_by_a_restart(cannot_write(tmp_path, OSError(errno.ENOSPC, "No space left on device")))


@pytest.mark.parametrize(
    ("message", "is_worth_it"),
    [
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", True),
        ("No CUDA GPUs are available", True),
        ("NCCL communicator was aborted on rank 3", True),
        ("CUDA error: device-side assert triggered", False),
        ("CUDA out of memory. Tried to allocate 2 GiB", False),
    ],
)
def test_a_failing_gpu_is_worth_a_restart_and_a_wrong_label_or_too_large_a_batch_is_not(
    message: str, is_worth_it: bool
) -> None:
    assert may_be_cured_by_a_restart(RuntimeError(message)) == is_worth_it
    assert may_be_cured_by_a_restart(torch.AcceleratorError(message)) == is_worth_it


def test_errors_of_input_and_program_are_not() -> None:
    with pytest.raises(RuntimeError) as wrong_shape:
        nn.Linear(3, 2)(torch.ones(1, 4))
    assert not may_be_cured_by_a_restart(wrong_shape.value)
    for error in (
        UserError("The weights do not fit."),
        ValueError("no"),
        torch.OutOfMemoryError("CUDA out of memory."),
    ):
        assert not may_be_cured_by_a_restart(error)


class Seen(UserCallback):  # type: ignore[misc]
    """Writes a line for every failure of the worker group."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        with self.file.open("a") as lines:
            lines.write("failure\n")


@pytest.fixture(scope="module")
def _connected() -> Iterator[None]:
    connection.connect(ScalingConfig(num_workers=2))
    yield
    ray.shutdown()


@pytest.mark.usefixtures("_connected")
@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        pytest.param({"weights": "/nowhere/weights.pt"}, UserError, "/nowhere/weights.pt", id="input"),
        pytest.param({"system_metrics": 5}, RunFailedError, "error.txt", id="program", marks=pytest.mark.long),
    ],
)
def test_an_error_that_would_come_again_ends_a_run_after_one_attempt(
    tmp_path: Path, wrong: dict[str, Any], kind: type[Exception], message: str
) -> None:
    task = write_task(tmp_path / "task", train=40)
    config = small_config(task, epochs=1)
    assert config.scaling.max_failures > 0, "the test is about an attempt that is not made"
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    payload = {"config": config.to_dict(), "data_folder": task, "weights": None, **wrong}
    with pytest.raises(kind, match=message):
        train_on_ray(config, folder, payload, [Seen(tmp_path / "failures")])
    assert (tmp_path / "failures").read_text() == "failure\n"
    if kind is RunFailedError:
        assert "On worker" in (folder.path / "error.txt").read_text(), "the traceback of the worker is kept"
