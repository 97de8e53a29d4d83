"""AutoLoRa on networks without batch norm."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from distributed_autolora.core.attacks import pgd
from distributed_autolora.core.fast_attack.attack_network import AttackNetwork
from distributed_autolora.core.lora import LowRankBranch
from distributed_autolora.core.objectives import AutoLoRa
from distributed_autolora.core.schedules import LossWeights
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.models import Classifier, build
from distributed_autolora.training.evaluation import natural_branch_accuracy
from tests.training.tasks import changed, small_config, trainer_of, write_task

NAMES = ("timm/vit_tiny_patch16_224", "timm/convnext_atto")
BOTH = pytest.mark.parametrize("name", NAMES)


def classifier(name: str) -> Classifier:
    torch.manual_seed(0)
    return build(name, 3, input_size=32)


def coloured(rows: int = 24) -> tuple[Tensor, Tensor]:
    y = torch.arange(rows) % 3
    x = 0.5 * torch.rand(rows, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    x[torch.arange(rows), y] += 0.3
    return x, y


@BOTH
def test_a_few_steps_of_autolora_lower_the_loss(name: str) -> None:
    network, (x, y) = classifier(name), coloured()
    objective = AutoLoRa(
        network, LowRankBranch(network, 2, head=network.head_name), weights=LossWeights(0.5, 1.0)
    ).train()
    attack_network = AttackNetwork(network)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for _ in range(8):
        attack_network.refresh()
        x_adv = pgd(attack_network, x, y, threat_model=ThreatModel("linf", 0.02), num_steps=1, step_size=0.02)
        total = objective(x, x_adv, y).total
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < 0.8 * losses[0], losses


def test_a_run_takes_a_vit_by_name(tmp_path: Path) -> None:
    folder = write_task(tmp_path, train=12, test=3)
    model = {"backbone": NAMES[0], "input_size": 32}
    trainer = trainer_of(changed(small_config(folder), data={"val_images_min": 3}, model=model))
    trainer.set_loss_weights(0.5)
    terms = trainer.train_epoch()
    assert terms.keys() >= {"natural", "adversarial", "kl"}
    assert natural_branch_accuracy(trainer.config, trainer.objective, trainer.data, 1) is not None
