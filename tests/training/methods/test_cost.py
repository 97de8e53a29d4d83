"""The cost ledger counts the passes that really happen."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distributed_autolora.records import Cost, Passes
from distributed_autolora.training.loop import run_epoch
from distributed_autolora.training.methods.cost import total_cost
from distributed_autolora.training.task_data import TaskData
from distributed_autolora.training.trainer import Trainer
from tests.reporting import runs
from tests.training.tasks import small_config, write_task


def count_passes(networks: list[nn.Module]) -> Counter[str]:
    """Returns counts that grow by the images of every pass through the networks' heads from now on."""
    counts: Counter[str] = Counter()

    def forward(_: nn.Module, __: Any, logits: torch.Tensor) -> None:
        counts["forward"] += len(logits)

    def backward(_: nn.Module, __: Any, gradients: tuple[torch.Tensor, ...]) -> None:
        counts["backward"] += len(gradients[0])

    for network in networks:
        network.get_submodule("fc").register_forward_hook(forward)
        network.get_submodule("fc").register_full_backward_hook(backward)
    return counts


@pytest.mark.parametrize(
    "method", ["autolora", "vanilla", "twins", "autolora with fixed weights", "twins with teacher"]
)
def test_the_ledger_of_an_epoch_is_what_hooks_on_the_network_count(tmp_path: Path, method: str) -> None:
    folder = write_task(tmp_path / "task", train=141)
    config = small_config(folder, method=method.partition(" ")[0])
    if "fixed" in method:
        config = replace(config, method=replace(config.method, natural_weight=0.5, kl_weight=3.0))
    if "teacher" in method:
        config = replace(config, method=replace(config.method, weight_average="both"))
    config = replace(config, eval_attack=replace(config.eval_attack, num_steps=3))
    device = torch.device("cpu")
    trainer = Trainer(config, TaskData(config, folder, device), None, device)
    network = trainer.attacks.network.network
    networks = [trainer.backbone.backbone, network.get_submodule("backbone")]
    if "teacher" in method:
        networks.append(trainer.deployed.backbone)
    counts = count_passes(networks)
    for _ in range(2):
        run_epoch(trainer)
        record = trainer.history[-1]
        assert asdict(record.passes) == dict(counts)
        counts.clear()


def test_the_cost_of_a_run_adds_its_epochs_and_weighs_seconds_by_workers() -> None:
    first, second = runs.history(2)
    history = [
        replace(first, epoch_seconds=2.0, num_workers=2, passes=Passes(100, 90)),
        replace(second, epoch_seconds=3.0, num_workers=1, passes=Passes(80, 90)),
    ]
    assert total_cost(history) == Cost(seconds=5.0, worker_seconds=7.0, forward_passes=180, backward_passes=180)
