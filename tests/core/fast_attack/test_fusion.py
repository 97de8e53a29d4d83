"""Networks that are written in unusual ways keep their function: a convolution that cannot be fused stays."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distributed_autolora.core.attacks import input_gradient
from distributed_autolora.core.fast_attack.attack_network import AttackNetwork, LayerTracer
from distributed_autolora.core.fast_attack.fused_convolution import FusedConvolution
from distributed_autolora.core.fast_attack.fusion import fuse
from tests.core.comparing import assert_near
from tests.reference.networks import randomised, seeded

Forward = Callable[["Odd", Tensor], Tensor]


class Odd(nn.Module):
    """Two convolutions, a constant and a way to use them."""

    def __init__(self, way: Forward) -> None:
        super().__init__()
        self.way = way
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.constant: Tensor
        self.register_buffer("constant", torch.full((1, 3, 1, 1), 0.3))
        self.unregistered = torch.full((1, 3, 1, 1), 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x - 0.5).mean((2, 3))


def added_to_itself(net: Odd, x: Tensor) -> Tensor:
    out = net.first(x)
    return F.relu(out + out)


def added_into_a_value_that_is_read_later(net: Odd, x: Tensor) -> Tensor:
    x = x * 2
    skip = x
    x += net.first(x.clone())
    return F.relu(x) + skip


def its_residual_changed_before_the_relu(net: Odd, x: Tensor) -> Tensor:
    x = x * 2
    out = net.first(x.clone()) + x
    other = F.relu(x, inplace=True)
    return F.relu(out) + other


def its_residual_changed_by_a_positional_flag(net: Odd, x: Tensor) -> Tensor:
    x = x * 2
    out = net.first(x.clone()) + x
    other = F.relu(x, True)
    return F.relu(out) + other


WAYS: dict[str, Forward] = {
    "by keyword": lambda net, x: F.relu(net.first(input=x)),
    "added to itself": added_to_itself,
    "added into a value that is read later": added_into_a_value_that_is_read_later,
    "its residual changed before the relu": its_residual_changed_before_the_relu,
    "its residual changed by a positional flag": its_residual_changed_by_a_positional_flag,
    "with an unregistered constant": lambda net, x: F.relu(net.first(x - net.unregistered.to(x))),
    "without a relu": lambda net, x: torch.tanh(net.first(x)),
}


def plain(net: Odd, x: Tensor) -> Tensor:
    return F.relu(net.first(x))


def odd(way: Forward) -> Odd:
    model = seeded(lambda: Odd(way))
    assert isinstance(model, Odd)
    return model.eval().requires_grad_(False)


def assert_same_function(network: nn.Module, model: nn.Module) -> None:
    x, y = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(1)), torch.arange(4) % 3
    assert_near(network(x), model(x))
    assert_near(input_gradient(network, x, y), input_gradient(model, x, y))


def fused_layers(network: nn.Module) -> int:
    return sum(isinstance(layer, FusedConvolution) for layer in network.modules())


@pytest.mark.parametrize("name", WAYS)
def test_a_convolution_that_cannot_be_fused_stays_and_the_network_with_it(name: str) -> None:
    model = odd(WAYS[name])
    network = fuse(model, LayerTracer().trace(model))
    assert network is model
    assert fused_layers(network) == 0
    assert_same_function(AttackNetwork(odd(WAYS[name])), odd(WAYS[name]))


def test_a_constant_that_is_refreshed_by_its_name_does_not_keep_a_convolution_from_being_fused() -> None:
    model = odd(lambda net, x: F.relu(net.first(x - net.constant)))
    network = AttackNetwork(model)
    assert fused_layers(network) == 1
    model.constant.fill_(-0.2)
    network.refresh()
    assert_same_function(network, model)


def test_the_plain_way_is_fused() -> None:
    """The control of the tests above: only what is odd in them prevents the fusion."""
    model = odd(plain)
    assert fused_layers(fuse(model, LayerTracer().trace(model))) == 1


def test_a_layer_with_a_hook_stays() -> None:
    model = odd(plain)
    model.first.register_forward_hook(lambda layer, inputs, out: 2 * out)
    network = AttackNetwork(model)
    assert fused_layers(network) == 0
    assert_same_function(network, model)


def test_a_batch_norm_with_a_hook_is_not_folded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    model(torch.rand(2, 3, 6, 6))
    randomised(model).eval().requires_grad_(False)
    model[1].register_forward_hook(lambda layer, inputs, out: 2 * out)
    assert_same_function(AttackNetwork(model), model)


def test_layers_that_share_a_weight_stay() -> None:
    model = odd(lambda net, x: F.relu(net.first(F.relu(net.second(x)))))
    model.first.weight = model.second.weight
    network = AttackNetwork(model)
    assert fused_layers(network) == 0
    assert_same_function(network, model)
