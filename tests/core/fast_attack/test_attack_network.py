"""The folded network that attacks run on: the same function, refreshed in place, no weaker attack."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from distributed_autolora.core import attacks
from distributed_autolora.core.fast_attack.attack_network import AttackNetwork
from distributed_autolora.core.paired_comparison import exceeds
from distributed_autolora.core.threat_model import ThreatModel
from tests.core.comparing import assert_near, assert_tight
from tests.reference.learned import accuracy, images, learned_network
from tests.reference.networks import BASIC, BOTTLENECK, GROUPED, RESNEXT, build, seeded


class OddNet(nn.Module):
    """Layers for forwards that leave a batch norm, or a convolution, as it is."""

    def __init__(self, way: Callable[["OddNet", Tensor], Tensor], **batch_norm: bool) -> None:
        super().__init__()
        self.way = way
        self.bn0 = nn.BatchNorm2d(3)
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(6, **batch_norm) for _ in range(3))
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.relu(self.way(self, x)).mean(dim=(2, 3)))
        return logits


def pre_activation(net: OddNet, x: Tensor) -> Tensor:
    """Batch norm on the image and behind an addition: nothing before it to fold into."""
    x = net.conv1(net.bn0(x))
    return net.bn2(x + net.conv2(torch.relu(net.bn1(torch.relu(x)))))  # type: ignore[no-any-return]


def shared_convolution(net: OddNet, x: Tensor) -> Tensor:
    """Convolutions whose output, or weight, is used beside the batch norm that follows them."""
    x = net.conv1(x)
    x = torch.relu(net.bn1(x) - 0.5 * x)
    return net.bn3(net.conv2(torch.relu(net.bn2(net.conv2(x)))))  # type: ignore[no-any-return]


def untraceable(net: OddNet, x: Tensor) -> Tensor:
    x = net.bn1(net.conv1(x))
    return torch.relu(x) if x.mean() > -100 else x


def one_batch_norm(net: OddNet, x: Tensor) -> Tensor:
    return net.bn1(net.conv1(x))  # type: ignore[no-any-return]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "torchvision resnet18": lambda: seeded(lambda: resnet18(num_classes=5)),
    "basic": lambda: build(BASIC, dtype=torch.float32),
    "bottleneck": lambda: build(BOTTLENECK, dtype=torch.float32),
    "resnext": lambda: build(RESNEXT, dtype=torch.float32),
    "grouped": lambda: build(GROUPED, dtype=torch.float32),
    "pre-activation": lambda: seeded(lambda: OddNet(pre_activation, affine=False)),
    "shared convolution": lambda: seeded(lambda: OddNet(shared_convolution)),
    "untraceable": lambda: seeded(lambda: OddNet(untraceable)),
    "batch statistics": lambda: seeded(lambda: OddNet(one_batch_norm, track_running_stats=False)),
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


@torch.no_grad()
def test_a_float64_model_is_attacked_in_float64() -> None:
    """Two workers give one worker's trajectory in float64 only if the attack keeps it too."""
    model = build(BASIC).eval()
    expected = model(picture().double())
    found = AttackNetwork(model)(picture().double())
    assert found.dtype == torch.float64
    assert_tight(found, expected)


@ALL
@torch.no_grad()
def test_folded_logits_are_the_model_s_in_eval_mode_and_a_refresh_follows_it(name: str) -> None:
    model = NETWORKS[name]()
    attack_network = AttackNetwork(model)
    attack_network.refresh()
    before = attack_network(picture())
    assert_near(before, NETWORKS[name]().eval()(picture()))
    changed(model)
    attack_network.refresh()
    expected = model.eval()(picture())
    assert (expected - before).norm() > 0.01 * expected.norm(), "the change would not show"
    assert_near(attack_network(picture()), expected)


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
    expected = attacks.input_gradient(model, picture(), y)
    found = attacks.input_gradient(attack_network, picture(), y)
    assert_near(found, expected)


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
    logits = attack_network(picture())
    assert logits.dtype == torch.float32
    assert_near(logits, model(picture()), torch.bfloat16)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.04), ("l2", 0.4)])
def test_an_attack_on_the_folded_or_the_bfloat16_network_leaves_no_more_images_right(norm: str, epsilon: float) -> None:
    """10 steps; the float32 model evaluates the last iterates. McNemar's statistic stays below 3 standard errors."""
    model, (x, y) = learned_network(), images(512, seed=2000)
    threat_model = ThreatModel(norm=norm, epsilon=epsilon)

    def right(network: nn.Module) -> Tensor:
        search = {"num_steps": 10, "step_size": epsilon / 4, "random_start": False}
        x_adv = attacks.pgd(network, x, y, threat_model=threat_model, **search)  # type: ignore[arg-type]
        logits: Tensor = model(x_adv)
        return (logits.argmax(1) == y).long()

    plain, folded, fast = (
        right(network) for network in (model, AttackNetwork(model), AttackNetwork(model, torch.bfloat16))
    )
    assert accuracy(model, x, y) > 0.9
    assert 0.15 < plain.double().mean() < 0.85, "the attack must have something to win and something to lose"
    assert not exceeds(folded, plain, 3)
    assert not exceeds(fast, plain, 3)
