"""What the benchmarks of the attack and of the step compare does the same work."""

from dataclasses import replace

import pytest
import torch

from benchmarks import attack, step
from distributed_autolora.config.recipes import demo
from distributed_autolora.data.catalog import embedded_backbone, embedded_folder
from distributed_autolora.models import build
from distributed_autolora.training.task_data import TaskData


@pytest.fixture(scope="module")
def shipped() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    config = demo()
    data = TaskData(config, embedded_folder(), torch.device("cpu"))
    model = build(
        "small_resnet", data.num_classes, str(embedded_backbone()), mean=config.model.mean, std=config.model.std
    )
    model.eval()
    return model, *data.plain_batch(data.split.train[:8])


def test_every_variant_of_the_attack_reaches_the_loss_of_the_plain_one(
    shipped: tuple[torch.nn.Module, torch.Tensor, torch.Tensor],
) -> None:
    model, x, y = shipped
    losses = {}
    for name, run in attack.variants_of(model, x, y, steps=3).items():
        x_adv = run()
        if name != attack.FLOOR:
            assert x_adv is not None
            with torch.no_grad():
                losses[name] = float(torch.nn.functional.cross_entropy(model(x_adv), y))
    with torch.no_grad():
        natural = float(torch.nn.functional.cross_entropy(model(x), y))
    assert losses[attack.PLAIN] > natural + 0.005
    for name, loss in losses.items():
        assert loss - natural > 0.9 * (losses[attack.PLAIN] - natural), name


@pytest.mark.parametrize("method", ["autolora", "twins"])
def test_the_plain_step_and_ours_move_the_same_weights_the_same_way(method: str) -> None:
    config = demo()
    config = replace(config, method=replace(config.method, name=method))
    data = TaskData(config, embedded_folder(), torch.device("cpu"))
    batch = data.split.train[:8]
    x, y = data.plain_batch(batch)
    ours = step.trainer_of(config, data, "float32", "float32")
    plain = step.Plain(config, data, batch, x, y)
    before = {name: value.clone() for name, value in plain.objective.state_dict().items()}
    ours.take(batch, x, y)
    plain.take()
    after, expected = ours.trainer.objective.state_dict(), plain.objective.state_dict()
    moved = torch.cat([(expected[n] - before[n]).flatten() for n, p in plain.objective.named_parameters()])
    apart = torch.cat([(after[n] - expected[n]).flatten() for n, p in plain.objective.named_parameters()])
    assert moved.norm() > 0
    assert apart.norm() < 0.05 * moved.norm()
