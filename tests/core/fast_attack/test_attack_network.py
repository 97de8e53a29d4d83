"""The folded network that attacks run on: the same function, refreshed in place, no weaker attack."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from distributed_autolora.core import attacks
from distributed_autolora.core.fast_attack.attack_network import AttackNetwork
from distributed_autolora.core.threat_model import ThreatModel
from tests.reference.learned import accuracy, images, learned_network
from tests.reference.networks import BASIC, BOTTLENECK, GROUPED, RESNEXT, build, randomised


class PreActivationNet(nn.Module):
    """Batch norm on the image and behind an addition: nothing before it to fold into."""

    def __init__(self) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(3)
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6, affine=False)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.bn0(x))
        x = x + self.conv2(torch.relu(self.bn1(torch.relu(x))))
        logits: Tensor = self.fc(torch.relu(self.bn2(x)).mean(dim=(2, 3)))
        return logits


class SharedConvolutionNet(nn.Module):
    """Convolutions whose output, or weight, is used beside the batch norm that follows them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(6)
        self.bn3 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = torch.relu(self.bn1(x) - 0.5 * x)
        x = torch.relu(self.bn2(self.conv2(x)))
        x = torch.relu(self.bn3(self.conv2(x)))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


class UntraceableNet(nn.Module):
    """A forward that asks the data which way to go."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        x = torch.relu(x) if x.mean() > -100 else x
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


class BatchStatisticsNet(nn.Module):
    """Batch norm without running statistics: it has nothing to fold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6, track_running_stats=False)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.relu(self.bn1(self.conv1(x))).mean(dim=(2, 3)))
        return logits


def seeded(maker: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomised(maker())


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "torchvision resnet18": lambda: seeded(lambda: resnet18(num_classes=5)),
    "basic": lambda: build(BASIC, dtype=torch.float32),
    "bottleneck": lambda: build(BOTTLENECK, dtype=torch.float32),
    "resnext": lambda: build(RESNEXT, dtype=torch.float32),
    "grouped": lambda: build(GROUPED, dtype=torch.float32),
    "pre-activation": lambda: seeded(PreActivationNet),
    "shared convolution": lambda: seeded(SharedConvolutionNet),
    "untraceable": lambda: seeded(UntraceableNet),
    "batch statistics": lambda: seeded(BatchStatisticsNet),
}
ALL = pytest.mark.parametrize("name", NETWORKS)


def picture(rows: int = 4, size: int = 16) -> Tensor:
    return torch.rand(rows, 3, size, size, generator=torch.Generator().manual_seed(5))


def changed(model: nn.Module) -> None:
    """Moves every weight and statistic, as training would, keeping variances positive."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.mul_(1.2)
                if not name.endswith("running_var"):
                    value.add_(0.01)


def assert_same_logits(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    assert actual.dtype == torch.float32
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@ALL
@torch.no_grad()
def test_folded_logits_are_the_model_s_in_eval_mode(name: str) -> None:
    model = NETWORKS[name]()
    expected = model.eval()(picture())
    model.train()
    attack_network = AttackNetwork(model)
    attack_network.refresh()
    assert_same_logits(attack_network(picture()), expected)


@torch.no_grad()
def test_a_float64_model_is_attacked_in_float64() -> None:
    """Two workers give one worker's trajectory in float64 only if the attack keeps it too."""
    model = build(BASIC).eval()
    expected = model(picture().double())
    found = AttackNetwork(model)(picture().double())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@ALL
@torch.no_grad()
def test_a_refresh_follows_the_weights_and_statistics_of_the_model(name: str) -> None:
    model = NETWORKS[name]()
    attack_network = AttackNetwork(model)
    attack_network.refresh()
    before = attack_network(picture())
    changed(model)
    attack_network.refresh()
    expected = model.eval()(picture())
    assert (expected - before).abs().max() > 1e-2 * expected.abs().max(), "the change would not show"
    assert_same_logits(attack_network(picture()), expected)


@ALL
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_refresh_writes_into_the_same_storage(name: str, precision: torch.dtype) -> None:
    model = NETWORKS[name]()
    attack_network = AttackNetwork(model, precision)
    attack_network.refresh()

    def tensors() -> dict[str, Tensor]:
        return dict(attack_network.named_parameters()) | dict(attack_network.named_buffers())

    before = {key: (value.data_ptr(), value.detach().clone()) for key, value in tensors().items()}
    changed(model)
    attack_network.refresh()
    assert {key: value.data_ptr() for key, value in tensors().items()} == {k: p for k, (p, _) in before.items()}
    assert any(not torch.equal(value, before[key][1]) for key, value in tensors().items())


@ALL
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_building_and_attacking_leave_the_model_as_it_was(name: str, precision: torch.dtype) -> None:
    model = NETWORKS[name]()
    before = {key: (value.clone(), value.dtype, value.stride()) for key, value in model.state_dict().items()}
    attack_network = AttackNetwork(model, precision)
    attack_network.refresh()
    threat_model = ThreatModel(norm="linf", epsilon=0.1, bounds=(0.0, 1.0))
    attacks.pgd(attack_network, picture(), torch.arange(4), threat_model=threat_model, num_steps=1, step_size=0.1)
    for key, value in model.state_dict().items():
        old, dtype, stride = before[key]
        assert torch.equal(value, old), key
        assert (value.dtype, value.stride()) == (dtype, stride), key
    assert all(module.training for module in model.modules())
    assert all(value.grad is None and value.requires_grad for value in model.parameters())


@ALL
def test_input_gradients_are_the_model_s(name: str) -> None:
    model, y = NETWORKS[name]().eval(), torch.arange(4)
    attack_network = AttackNetwork(model)
    attack_network.refresh()
    expected = attacks.input_gradient(model, picture(), y)
    found = attacks.input_gradient(attack_network, picture(), y)
    assert expected.abs().max() > 0
    assert (found - expected).norm() <= 1e-4 * expected.norm()


@torch.no_grad()
def test_the_folded_network_has_fewer_batch_norms_than_the_model() -> None:
    """ResNet-18: each of its 20 batch norms follows a convolution."""
    attack_network = AttackNetwork(NETWORKS["torchvision resnet18"]())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in attack_network.modules())


@ALL
@torch.no_grad()
def test_bfloat16_logits_are_float32_numbers_near_the_model_s(name: str) -> None:
    model = NETWORKS[name]().eval()
    attack_network = AttackNetwork(model, precision=torch.bfloat16)
    attack_network.refresh()
    assert_same_logits(attack_network(picture()), model(picture()), tolerance=0.1)


def test_a_fast_attack_fools_the_float32_model_about_as_often() -> None:
    """512 images, 10 steps; the last iterates are judged by the float32 model."""
    model, (x, y) = learned_network(), images(512, seed=2000)
    threat_model = ThreatModel(norm="linf", epsilon=0.04, bounds=(0.0, 1.0))
    fast, folded = AttackNetwork(model, torch.bfloat16), AttackNetwork(model, torch.float32)
    fast.refresh()
    folded.refresh()
    left = {
        name: accuracy(
            model,
            attacks.pgd(network, x, y, threat_model=threat_model, num_steps=10, step_size=0.01, random_start=False),
            y,
        )
        for name, network in (("plain", model), ("folded", folded), ("fast", fast))
    }
    assert accuracy(model, x, y) > 0.9
    assert 0.15 < left["plain"] < 0.85, "the attack must have something to win and something to lose"
    assert left["folded"] == pytest.approx(left["plain"], abs=0.005)
    assert left["fast"] == pytest.approx(left["plain"], abs=0.02)
