"""The fast attack is not a weaker attack."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from distributed_autolora.config.recipes import demo
from distributed_autolora.core.attacks import eval_mode
from distributed_autolora.core.fast_attack.attack_network import AttackNetwork
from distributed_autolora.data.catalog import embedded_backbone, embedded_folder
from distributed_autolora.models import build
from distributed_autolora.training.attacks import build_attack
from distributed_autolora.training.evaluation import fit_linear_head
from distributed_autolora.training.task_data import TaskData


@pytest.mark.long
def test_on_the_shipped_test_set_the_bfloat16_attack_reaches_the_loss_of_the_float32_attack() -> None:
    """An attack is as strong as the loss that it reaches; near the boundary, rounding decides single images."""
    config = demo()
    data = TaskData(config, embedded_folder(), torch.device("cpu"))
    classifier = build(
        "small_resnet", data.num_classes, str(embedded_backbone()), mean=config.model.mean, std=config.model.std
    )
    fit_linear_head(classifier, data.plain_batch, data.split.train, batch_size=250)
    attack = build_attack(config, replace(config.eval_attack, num_steps=10))
    losses, right = {}, {}
    with eval_mode(classifier):
        for precision in (torch.float32, torch.bfloat16):
            network = AttackNetwork(classifier, precision)
            batches = [data.test_batch(rows) for rows in torch.arange(1000).split(250)]
            with torch.no_grad():
                judged = [(classifier(attack(network, x, y)), y) for x, y in batches]
            losses[precision] = sum(float(F.cross_entropy(logits, y, reduction="sum")) for logits, y in judged) / 1000
            right[precision] = torch.cat([logits.argmax(1) == y for logits, y in judged])
    assert 0.3 < right[torch.float32].float().mean() < 0.7, "the attack must have something to win and to lose"
    assert losses[torch.bfloat16] > 0.99 * losses[torch.float32]
    assert (right[torch.bfloat16] != right[torch.float32]).float().mean() <= 0.03
