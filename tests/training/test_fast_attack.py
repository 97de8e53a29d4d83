"""The fast attack is not a weaker attack."""

from __future__ import annotations

from dataclasses import replace

import torch

from distributed_autolora.core.attack_network import AttackNetwork
from distributed_autolora.data.catalog import embedded_backbone, embedded_folder
from distributed_autolora.models import build
from distributed_autolora.recipes import demo
from distributed_autolora.training.evaluation import fit_linear_head, natural_and_robust_accuracy
from distributed_autolora.training.methods import build_attack
from distributed_autolora.training.task_data import TaskData


def test_on_the_shipped_test_set_the_bfloat16_attack_fools_as_often_as_the_float32_attack() -> None:
    config = demo()
    data = TaskData(config, embedded_folder(), torch.device("cpu"))
    classifier = build(
        "small_resnet", data.num_classes, str(embedded_backbone()), mean=config.model.mean, std=config.model.std
    )
    fit_linear_head(classifier, data.plain_batch, data.split.train, batch_size=250)
    attack = build_attack(config, replace(config.eval_attack, num_steps=10))
    natural, robust = {}, {}
    for precision in (torch.float32, torch.bfloat16):
        network = AttackNetwork(classifier, precision)
        natural[precision], robust[precision] = natural_and_robust_accuracy(
            classifier, network, attack, data.test_batch, torch.arange(1000), 250
        )
    assert natural[torch.float32].accuracy > 0.8
    assert robust[torch.float32].accuracy < natural[torch.float32].accuracy - 0.1
    assert abs(robust[torch.float32].correct - robust[torch.bfloat16].correct) <= 5
