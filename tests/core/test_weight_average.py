"""The moving average against its recursion written out by hand, and as a teacher of the soft labels."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from distributed_autolora.core.fast_attack.attack_network import AttackNetwork
from distributed_autolora.core.objectives import AutoLoRa, Twins, VanillaRFT
from distributed_autolora.core.schedules import LossWeights
from distributed_autolora.core.weight_average import WeightAverage
from tests.core.comparing import assert_near, assert_same, assert_tight, branch_with_effect
from tests.reference.networks import BASIC, batch, build


def moved(network: nn.Module, step: int) -> None:
    """Gives every floating-point value of the network another one, and counts up the others."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator, dtype=value.dtype))
            else:
                value.add_(3)


@pytest.mark.parametrize("memory", [1, 50])
def test_the_average_is_the_recursion_by_hand_with_a_warm_up(memory: int) -> None:
    network = build(BASIC)
    average = WeightAverage(network, memory)
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    for step in range(12):
        moved(network, step)
        average.update(network)
        decay = min(math.exp(-1 / memory), (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            counts = name.endswith("num_batches_tracked")
            expected[name] = value.clone() if counts else decay * expected[name] + (1 - decay) * value
    assert_same(average.network.state_dict(), expected)
    assert average.updates == 12
    assert (math.exp(-1 / memory) < 12 / 21) == (memory < 50), "one memory is reached within the test, one is not"


def test_a_weight_that_two_layers_share_moves_once() -> None:
    one, other = nn.Linear(2, 2, bias=False).double(), nn.Linear(2, 2, bias=False)
    other.weight = one.weight
    network = nn.Sequential(one, other)
    average = WeightAverage(network, memory=10)
    start = one.weight.detach().clone()
    with torch.no_grad():
        one.weight.add_(1)
    average.update(network)
    assert_tight(average.network.get_parameter("0.weight"), start + 0.9)


def test_the_average_is_not_trained_and_stays_in_eval_mode() -> None:
    network, (x, _, _) = build(BASIC), batch(5)
    average = WeightAverage(network, memory=10).train()
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert not any(module.training for module in average.modules())
    before = {name: value.clone() for name, value in average.state_dict().items()}
    assert not average(x).requires_grad
    assert_same(average.state_dict(), before)
    with pytest.raises(ValueError, match="memory is 0"):
        WeightAverage(network, memory=0)


def test_the_attack_network_takes_the_weights_of_either_network() -> None:
    network, (x, _, _) = build(BASIC, dtype=torch.float32), batch(5, dtype=torch.float32)
    average = WeightAverage(network, memory=10)
    moved(network, 0)
    attacked = AttackNetwork(network)
    for source, expected in ((average.network, average.network), (None, network), (network, network)):
        attacked.refresh(source)
        with torch.no_grad():
            assert_near(attacked(x), expected.eval()(x))


def autolora(network: nn.Module, soft_labels: str) -> nn.Module:
    branch = branch_with_effect(BASIC, network)
    return AutoLoRa(network, branch, weights=LossWeights(0.3, 2.5), soft_labels=soft_labels)


OBJECTIVES: dict[str, Callable[..., nn.Module]] = {
    "autolora": autolora,
    "vanilla": partial(VanillaRFT, trades_beta=2.5),
    "twins": partial(Twins, trades_beta=2.5, twins_gamma=0.7),
}


def divergence(labels: Tensor, logits: Tensor) -> Tensor:
    estimate = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
    return (labels * (torch.log(labels) - torch.log(estimate))).sum(1)


@pytest.mark.parametrize("soft_labels", ["joint", "detached"])
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_with_a_teacher_the_soft_labels_are_its_probabilities_and_are_not_trained(kind: str, soft_labels: str) -> None:
    """Batch norm in eval mode, so that the adversarial logits can be computed beside."""
    network, (x, x_adv, y) = build(BASIC).eval(), batch(6)
    teacher = build(BASIC, seed=1).eval()
    objective = OBJECTIVES[kind](network, soft_labels=soft_labels).eval()
    teacher_logits = teacher(x)
    terms = objective(x, x_adv, y, teacher_logits=teacher_logits)
    plain = objective(x, x_adv, y)
    labels = torch.exp(teacher_logits.detach()) / torch.exp(teacher_logits.detach()).sum(1, keepdim=True)
    each = divergence(labels, network(x_adv))
    if isinstance(objective, Twins):
        frozen = divergence(labels[:3], objective.frozen_logits(x_adv[:3]))
        assert_tight(terms.parts["kl"], 2.5 * each[3:].sum() / 6)
        assert_tight(terms.parts["kl_frozen"], 0.7 * 2.5 * frozen.sum() / 6)
    else:
        assert_tight(terms.parts["kl"], 2.5 * each.mean())
    for name in terms.parts:
        assert torch.equal(terms.parts[name], plain.parts[name]) == ("kl" not in name), name
    torch.stack([part for name, part in terms.parts.items() if "kl" in name]).sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    if isinstance(objective, AutoLoRa):
        assert all(factor.grad is None for pair in objective.branch.factors().values() for factor in pair)
