"""Attacks captured with the refresh of their network meet the weights that training has reached."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distributed_autolora.config import ScheduleConfig
from distributed_autolora.core.fast_attack.cuda_graphs import CudaGraphAttack, Run
from distributed_autolora.training.attacks import build_attacks
from distributed_autolora.training.checkpoint import TrainingState
from distributed_autolora.training.loop import run_epoch
from distributed_autolora.training.task_data import TaskData
from distributed_autolora.training.trainer import Trainer
from tests.training.tasks import small_config, write_task


class Kernels(TorchDispatchMode):
    """Captures as a CUDA graph does: every kernel with the memory that it read and wrote, and none of the Python."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.captures = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def __call__(self, run: Run) -> Run:
        self.calls: list[tuple[Any, Any, dict[str, Any], Any]] = []
        with self:
            result = run()
        calls, self.captures = self.calls, self.captures + 1

        @torch.no_grad()
        def replay() -> Tensor:
            for func, args, kwargs, written in calls:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(written), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # else it is a view, or in place
                        old.copy_(new)
            return result

        return replay


@pytest.mark.parametrize("method", [{"method": "autolora", "weight_average": "deployed"}, {"method": "twins"}])
def test_a_replay_reads_the_weights_after_steps_a_restore_and_a_resumption(
    method: dict[str, Any], tmp_path: Path
) -> None:
    """In float64, where no convolution is fused: the attack network is then the one of a GPU."""
    folder = write_task(tmp_path / "task", train=120)
    config = small_config(folder, **method)
    config = replace(config, schedule=ScheduleConfig(), evaluation=replace(config.evaluation, masking_every=0))
    trainer = Trainer(
        config, TaskData(config, folder, torch.device("cpu"), torch.float64), None, torch.device("cpu"), torch.float64
    )
    capture = Kernels()
    captured = build_attacks(config, trainer.backbone, trainer.deployed, capture)
    x, y = trainer.data.plain_batch(trainer.data.split.val[:8])
    seen: list[Tensor] = []

    def compare() -> None:
        for attack, replayed, model in (
            (trainer.attacks.train, captured.train, trainer.backbone),
            (trainer.attacks.evaluation, captured.evaluation, trainer.deployed),
        ):
            assert isinstance(replayed, CudaGraphAttack)
            noise = torch.rand(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(len(seen)))
            x_adv = replayed(model, x, y, noise=noise)
            assert torch.equal(x_adv, attack(model, x, y, noise=noise))
            assert replayed.is_replaying
            seen.append(next(iter(model.parameters())).detach().clone())

    compare()
    run_epoch(trainer)
    compare()
    trainer.state().save(tmp_path)
    run_epoch(trainer)
    compare()
    trainer.restore_best()
    compare()
    trainer.load(TrainingState.load(tmp_path))
    compare()
    assert capture.captures == 2
    assert not torch.equal(seen[0], seen[2]), "training must have moved the weights"
    assert not torch.equal(seen[2], seen[4])
