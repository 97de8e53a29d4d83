"""The cost ledger counts the passes that really happen."""

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.config.recipes import recipe
from distributed_autolora.records import Cost, Passes, total_cost
from distributed_autolora.training.loop import run_epoch
from distributed_autolora.training.methods.cost import MASKING_SHARE, epoch_passes, masking_images
from tests.reporting import runs
from tests.training.tasks import small_config, trainer_of, write_task


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
    "method",
    ["autolora", "vanilla", "twins", "autolora with fixed weights", "twins with teacher", "vanilla with probing"],
)
def test_the_ledger_of_an_epoch_is_what_hooks_on_the_network_count(tmp_path: Path, method: str) -> None:
    folder = write_task(tmp_path / "task", train=141)
    config = small_config(folder, method=method.partition(" ")[0])
    if "fixed" in method:
        config = replace(config, method=replace(config.method, natural_weight=0.5, kl_weight=3.0))
    if "probing" in method:
        config = replace(config, method=replace(config.method, head_init="probing"))
    if "teacher" in method:
        config = replace(config, method=replace(config.method, weight_average="both"))
    config = replace(config, eval_attack=replace(config.eval_attack, num_steps=3))
    trainer = trainer_of(config)
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


def ends(config: ExperimentConfig) -> list[int]:
    """Returns the epochs that a run may end with: at any decision once enough halvings were possible, and the last."""
    epochs, lr = config.optimization.epochs, config.optimization.lr
    if config.schedule.name == "step_decay":
        return [epochs]
    first = config.schedule.interval + (config.schedule.rule != "paired")
    decisions = range(first, epochs + 1, config.schedule.interval)
    possible = []
    for decision in decisions:
        lr /= 2
        if lr < config.schedule.min_lr:
            possible.append(decision)
    return [*possible, epochs]


def added(config: ExperimentConfig, sizes: tuple[int, int], end: int, images: int) -> float:
    """Returns the share that checks of so many images add to the passes of a run that ends after epoch `end`."""
    passes = {True: 0, False: 0}
    for checked in passes:
        for epoch in range(1, end + 1):
            # Rule "paired" checks its decisions as well.
            multiples = {config.evaluation.masking_every, config.schedule.interval}
            is_due = epoch == end or any(epoch % every == 0 for every in multiples)
            found = epoch_passes(config, *sizes, epoch, images if checked and is_due else 0)
            passes[checked] += found.forward + found.backward
    return passes[True] / passes[False] - 1


@pytest.mark.parametrize("every", [1, 2, 4, 7, 100])
@pytest.mark.parametrize(("epochs", "interval"), [(1, 4), (5, 1), (20, 1), (20, 4), (60, 3), (60, 4)])
@pytest.mark.parametrize("sizes", [(750, 250), (47_500, 2_500), (90, 30)])
def test_the_checks_cost_a_twentieth_of_the_passes_at_most_wherever_a_run_ends(
    every: int, epochs: int, interval: int, sizes: tuple[int, int]
) -> None:
    base = recipe("demo")
    config = replace(
        base,
        evaluation=replace(base.evaluation, masking_every=every),
        optimization=replace(base.optimization, epochs=epochs),
        schedule=replace(base.schedule, interval=interval),
    )
    images = masking_images(config, *sizes)
    assert 0 < images <= sizes[1]
    shares = {count: max(added(config, sizes, end, count) for end in ends(config)) for count in (images, images + 1)}
    assert shares[images] <= MASKING_SHARE
    if images < sizes[1] and len(ends(config)) == 1:
        assert shares[images + 1] > 0.95 * MASKING_SHARE, "the budget is used; the first epoch's extra pass is not"
