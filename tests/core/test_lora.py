"""The low-rank branch: which layers, how many parameters, which weights."""

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models import resnet18, resnet50
from torchvision.models.resnet import BasicBlock, ResNet

from distributed_autolora.core.lora import LowRankBranch, parameter_ratio, table3_ratio
from tests.core.comparing import assert_tight, branch_with_effect
from tests.reference.networks import BASIC, CASES, GROUPED, Case, GroupedNet, build
from tests.reference.slow_objectives import slow_delta


@cache
def torchvision_network(name: str) -> nn.Module:
    maker: Callable[..., nn.Module] = {"resnet18": resnet18, "resnet50": resnet50}[name]
    return maker(num_classes=10)


def count(branch: LowRankBranch) -> int:
    return sum(a.numel() + b.numel() for a, b in branch.factors().values())


@pytest.mark.parametrize("lora_rank", [1, 2, 8])
@pytest.mark.parametrize(
    ("name", "scope", "per_rank"),
    [
        ("resnet18", "all", 66_432),
        ("resnet18", "last_block", 34_560),
        ("resnet50", "all", 109_440),
        ("resnet50", "last_block", 26_880),
    ],
)
def test_the_branch_has_the_paper_s_number_of_parameters(name: str, scope: str, per_rank: int, lora_rank: int) -> None:
    branch = LowRankBranch(torchvision_network(name), lora_rank=lora_rank, lora_scope=scope)
    assert count(branch) == per_rank * lora_rank
    assert count(branch) == sum(value.numel() for value in branch.parameters())


@pytest.mark.parametrize(("lora_rank", "per_cent"), [(2, 1.3039), (4, 2.4922), (8, 4.8686), (16, 9.6216)])
def test_the_ratios_of_table_3(lora_rank: int, per_cent: float) -> None:
    network = torchvision_network("resnet18")
    assert round(100 * table3_ratio(network, LowRankBranch(network, lora_rank=lora_rank)), 4) == per_cent


@pytest.mark.parametrize(
    ("name", "scope", "lora_rank", "per_cent"),
    [
        *(("resnet18", "all", rank, per_cent) for rank, per_cent in ((2, 1.189), (4, 2.378), (8, 4.755), (16, 9.510))),
        *(("resnet18", "last_block", 8, 2.474), ("resnet50", "all", 8, 3.724), ("resnet50", "last_block", 8, 0.915)),
    ],
)
def test_the_plain_ratio(name: str, scope: str, lora_rank: int, per_cent: float) -> None:
    network = torchvision_network(name)
    branch = LowRankBranch(network, lora_rank=lora_rank, lora_scope=scope)
    assert round(100 * parameter_ratio(network, branch), 3) == per_cent


def test_the_last_block_scope_reaches_what_the_released_code_trains() -> None:
    resnet18_layers = {f"layer{stage}.1.conv{number}" for stage in (1, 2, 3, 4) for number in (1, 2)}
    assert set(LowRankBranch(torchvision_network("resnet18"), lora_scope="last_block").factors()) == resnet18_layers
    last = ("layer1.2", "layer2.3", "layer3.5", "layer4.2")
    resnet50_layers = {f"{block}.conv{number}" for block in last for number in (1, 2, 3)}
    assert set(LowRankBranch(torchvision_network("resnet50"), lora_scope="last_block").factors()) == resnet50_layers


def test_a_downsample_in_the_last_block_of_a_stage_stays_out_of_the_last_block_scope() -> None:
    """With one block a stage; the released code never hands the low-rank path to a downsample."""
    single = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
    expected = {f"layer{stage}.0.conv{number}" for stage in (1, 2, 3, 4) for number in (1, 2)}
    assert set(LowRankBranch(single, lora_rank=1, lora_scope="last_block").factors()) == expected


def test_a_head_of_several_layers_is_shared_whole() -> None:
    """As in torchvision's VGG and MobileNet."""
    network = GroupedNet()
    network.set_submodule("head", nn.Sequential(nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 5)))
    branch = LowRankBranch(network, lora_rank=2, head="head")
    assert set(branch.factors()) == set(GROUPED.all_layers)
    natural = branch.natural_parameters(network)
    assert all(value is natural[f"head.{name}"] for name, value in network.get_submodule("head").named_parameters())


def test_the_outermost_layer_of_a_name_is_the_head() -> None:
    """Squeeze-and-excitation blocks call their own layers `fc`; inside a wrapper no head has a name of one part."""
    network = build(BASIC)
    network.get_submodule("layer1.0").add_module("fc", nn.Linear(8, 8).double())
    assert set(LowRankBranch(network, lora_rank=2, head="fc").factors()) == {*BASIC.all_layers, "layer1.0.fc"}
    wrapped = LowRankBranch(nn.Sequential(OrderedDict(backbone=network)), lora_rank=2, head="fc")
    assert wrapped.head == "backbone.fc"
    assert "backbone.layer1.0.fc" in wrapped.factors()


class TiedNet(nn.Module):
    """One weight in two layers, another shared with the head, a third computed from two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.beside_head, self.fc = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight, self.fc.weight = self.first.weight, self.beside_head.weight
        self.computed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.stem, self.first, self.second, self.computed, self.beside_head):
            x = torch.tanh(layer(x))
        logits: Tensor = self.fc(x)
        return logits


def test_shared_weights_are_reached_once_and_those_of_the_head_stay_the_head_s() -> None:
    network = TiedNet()
    branch = LowRankBranch(network, lora_rank=1)
    assert set(branch.factors()) == {"first"}
    functional_call(network, branch.natural_parameters(network), (torch.rand(3, 4),)).square().sum().backward()
    reached = {name for name, value in network.named_parameters() if value.grad is not None}
    assert reached == {"beside_head.weight", "fc.bias"}


@pytest.mark.parametrize(
    ("layer", "shape_a", "shape_b"),
    [
        ("grouped", (9, 12), (36, 9)),  # rank 3, 12 x (8 / 2) x 3 x 3
        ("depthwise", (9, 3), (36, 9)),
        ("pointwise", (3, 12), (10, 3)),
        ("hidden", (3, 10), (7, 3)),
    ],
)
def test_factor_shapes(layer: str, shape_a: tuple[int, int], shape_b: tuple[int, int]) -> None:
    a, b = LowRankBranch(build(GROUPED), lora_rank=3, head="head").factors()[layer]
    assert (tuple(a.shape), tuple(b.shape)) == (shape_a, shape_b)


def test_a_starts_normal_with_deviation_one_and_b_at_zero() -> None:
    factors = LowRankBranch(torchvision_network("resnet18"), lora_rank=2).factors()
    values = torch.cat([a.detach().flatten() for a, _ in factors.values()])
    bound = 5 / math.sqrt(len(values))
    assert abs(values.mean()) < bound
    assert abs(values.std() - 1) < bound
    assert (values.abs() > 2.5).float().mean() == pytest.approx(0.0124, abs=0.005), "not uniform, not truncated"
    assert all(bool((b == 0).all()) for _, b in factors.values())


@pytest.mark.parametrize("name", ["resnet18", "basic"])
@torch.no_grad()
def test_at_the_start_the_branch_equals_the_plain_network_exactly(name: str) -> None:
    network = torchvision_network(name) if name == "resnet18" else build(BASIC, dtype=torch.float32)
    network.eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    branch = LowRankBranch(network)
    assert torch.equal(functional_call(network, branch.natural_parameters(network), (x,)), network(x))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_natural_weights_are_the_weights_plus_the_slow_product(case: Case) -> None:
    network = build(case)
    branch = branch_with_effect(case, network, lora_rank=3)
    natural = branch.natural_parameters(network)
    parameters = dict(network.named_parameters())
    assert natural.keys() == parameters.keys()
    changed = {f"{name}.weight" for name in case.all_layers}
    for name, value in parameters.items():
        expected = value.detach()
        if name in changed:
            a, b = branch.factors()[name.removesuffix(".weight")]
            expected = expected + slow_delta(a, b, value.shape, 3).detach()
        assert_tight(natural[name].detach(), expected)
