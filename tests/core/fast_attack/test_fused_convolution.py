"""Fused convolutions compute what the layers they replace do, and their input gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from distributed_autolora.core.attacks import input_gradient
from distributed_autolora.core.fast_attack.attack_network import AttackNetwork, LayerTracer
from distributed_autolora.core.fast_attack.fused_convolution import FusedConvolution, is_available
from distributed_autolora.core.fast_attack.fusion import fuse
from distributed_autolora.models import build
from tests.core.comparing import assert_near
from tests.reference.networks import seeded

GEOMETRIES = {
    "3 x 3": {"kernel_size": 3, "padding": 1},
    "1 x 1": {"kernel_size": 1},
    "no padding": {"kernel_size": 3},
    "more padding than reach": {"kernel_size": 1, "padding": 1},
    "stride 2": {"kernel_size": 3, "padding": 1, "stride": 2},
    "stride in one direction": {"kernel_size": 3, "padding": 1, "stride": (1, 2)},
    "dilation": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 2},
    "oblong kernel": {"kernel_size": (1, 5), "padding": (0, 2)},
    "even kernel": {"kernel_size": 2, "padding": 1},
}


class Plain(nn.Module):
    """A convolution, an optional residual and a ReLU, as networks write them."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out: Tensor = self.convolution(x)
        return torch.relu(out if residual is None else out + residual)


class Block(nn.Module):
    """Writes ReLUs and additions in every way that networks do; `reduce` makes the last residual smaller."""

    def __init__(self, reduce: bool = False) -> None:
        super().__init__()
        self.reduce = reduce
        self.conv1, self.conv2, self.conv3, self.conv4 = (nn.Conv2d(6, 6, 3, padding=1) for _ in range(4))
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.read_twice = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, 1 - x], 1)
        x = self.conv1(x).relu_()
        x = torch.add(x, self.conv2(x)).relu()
        out = self.conv3(x)
        out += x
        x = nn.functional.relu(out, inplace=True)
        x = torch.relu(self.conv4(x) + (x.mean((2, 3), keepdim=True) if self.reduce else x))
        x = torch.relu(self.shared(torch.relu(self.shared(x))))
        twice = self.read_twice(x)
        x = torch.relu(twice) - 0.5 * twice
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def uniform(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.5


def pair(geometry: str) -> tuple[Plain, FusedConvolution]:
    convolution = nn.Conv2d(6, 8, **GEOMETRIES[geometry])  # type: ignore[arg-type]
    plain = seeded(lambda: Plain(convolution)).requires_grad_(False)
    assert isinstance(plain, Plain)
    return plain, FusedConvolution(plain.convolution)


def outcome(module: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Returns the output and the gradients of the inputs for a fixed gradient of the output."""
    leaves = [value.clone().requires_grad_() for value in inputs]
    out: Tensor = module(*leaves)
    return (out.detach(), *torch.autograd.grad(out, leaves, uniform(*out.shape, seed=9)))


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_a_fused_convolution_is_the_convolution_the_addition_and_the_relu(geometry: str, with_residual: bool) -> None:
    plain, fused = pair(geometry)
    x = uniform(3, 6, 9, 7)
    inputs = (x, uniform(*plain(x).shape, seed=3)) if with_residual else (x,)
    for found, expected in zip(outcome(fused, *inputs), outcome(plain, *inputs), strict=True):
        assert_near(found, expected)
    out = fused(*(value.requires_grad_() for value in inputs))
    assert type(out.grad_fn).__name__ == "_FusedBackward", "one kernel, not three"


def test_a_refreshed_convolution_follows_its_weight_in_the_gradient_too() -> None:
    plain, fused = pair("3 x 3")
    with torch.no_grad():
        plain.convolution.weight.mul_(-1.5)
    fused.refresh()
    for found, expected in zip(outcome(fused, uniform(2, 6, 5, 5)), outcome(plain, uniform(2, 6, 5, 5)), strict=True):
        assert_near(found, expected)


@pytest.mark.parametrize("reduce", [False, True])
def test_every_way_to_write_a_relu_and_an_addition_is_fused_and_computes_the_same(reduce: bool) -> None:
    model = seeded(lambda: Block(reduce)).eval().requires_grad_(False)
    x, y = uniform(4, 3, 8, 8) + 0.5, torch.arange(4)
    expected, gradient = model(x), input_gradient(model, x, y)
    network = fuse(model, LayerTracer().trace(model))
    fused = {name for name, layer in network.named_modules() if isinstance(layer, FusedConvolution)}
    assert fused == {"conv1", "conv2", "conv3", "conv4"}, "a convolution that is used twice cannot be fused"
    assert_near(network(x), expected)
    assert_near(input_gradient(network, x, y), gradient)


@pytest.mark.skipif(not is_available(torch.zeros(1)), reason="this CPU or this build has no oneDNN")
@pytest.mark.parametrize("maker", [lambda: resnet18(num_classes=5), lambda: build("resnet18", 5)])
def test_on_a_cpu_the_attack_network_of_a_resnet_fuses_all_but_its_downsampling(maker: Callable[[], nn.Module]) -> None:
    """ResNet-18: a stem and sixteen convolutions in blocks; the three of the shortcuts have no ReLU behind them."""
    network = AttackNetwork(maker())
    assert sum(isinstance(layer, FusedConvolution) for layer in network.modules()) == 17


@pytest.mark.skipif(not is_available(torch.zeros(1)), reason="this CPU or this build has no oneDNN")
def test_a_classifier_fused_behind_its_input_pipeline_follows_its_weights() -> None:
    model = seeded(lambda: build("small_resnet", 4, mean=(0.3,), std=(0.5,))).eval()
    network = AttackNetwork(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
        model.get_buffer("mean").fill_(0.7)
    network.refresh()
    x, y = uniform(4, 1, 28, 28) + 0.5, torch.arange(4)
    assert any(isinstance(layer, FusedConvolution) for layer in network.modules())
    assert_near(network(x), model(x))
    assert_near(input_gradient(network, x, y), input_gradient(model, x, y))


def test_float64_is_not_fused() -> None:
    """oneDNN has no float64, in which the laws about workers are proved."""
    assert not is_available(torch.zeros(1, dtype=torch.float64))
    network = AttackNetwork(resnet18(num_classes=5).double())
    assert not any(isinstance(layer, FusedConvolution) for layer in network.modules())
