"""Small networks with torchvision's blocks and names, each beside a forward pass written out by hand.

The modules are what the package is tested on; the forwards (`tests.reference.slow_forward`) and the
layer lists are the oracle's: nothing here is found by walking over modules.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from tests.reference import slow_forward
from tests.reference.slow_forward import SlowPass

BLOCKS = (2, 2)


class SmallResNet(nn.Module):
    """A two-stage ResNet for 8 x 8 images, in torchvision's naming: conv1, bn1, layer1, layer2, fc."""

    def __init__(
        self, block: Callable[..., nn.Module], *, expansion: int, width: int, groups: int = 1, num_classes: int = 5
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for stage, count in enumerate(BLOCKS):
            planes = width * 2**stage
            blocks = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                downsample = None
                if stride != 1 or channels != planes * expansion:
                    downsample = nn.Sequential(
                        nn.Conv2d(channels, planes * expansion, 1, stride, bias=False),
                        nn.BatchNorm2d(planes * expansion),
                    )
                blocks.append(block(channels, planes, stride, downsample, groups=groups))
                channels = planes * expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.get_submodule("layer2")(self.get_submodule("layer1")(x))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


class GroupedNet(nn.Module):
    """Grouped, depthwise and pointwise convolutions with biases, a hidden linear layer, and a head named `head`."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=2)
        self.bn2 = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.pointwise = nn.Conv2d(12, 10, 1)
        self.bn3 = nn.BatchNorm2d(10)
        self.hidden = nn.Linear(10, 7)
        self.head = nn.Linear(7, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.stem(x)))
        x = torch.relu(self.bn2(self.grouped(x)))
        x = torch.relu(self.bn3(self.pointwise(self.depthwise(x))))
        logits: Tensor = self.head(torch.tanh(self.hidden(x.mean(dim=(2, 3)))))
        return logits


@dataclass(frozen=True)
class Case:
    """A network, its forward by hand, and by name the layers that the low-rank branch must reach."""

    name: str
    build: Callable[[], nn.Module]
    slow_forward: Callable[[SlowPass, Tensor], Tensor]
    head: str
    all_layers: tuple[str, ...]
    last_block_layers: tuple[str, ...] | None = None


def _convolutions(blocks: tuple[str, ...], count: int) -> tuple[str, ...]:
    return tuple(f"{block}.conv{number}" for block in blocks for number in range(1, count + 1))


_ALL_BLOCKS = ("layer1.0", "layer1.1", "layer2.0", "layer2.1")
_LAST_BLOCKS = ("layer1.1", "layer2.1")

BASIC = Case(
    name="basic",
    build=lambda: SmallResNet(BasicBlock, expansion=1, width=8),
    slow_forward=slow_forward.basic_resnet,
    head="fc",
    all_layers=(*_convolutions(_ALL_BLOCKS, 2), "layer2.0.downsample.0"),
    last_block_layers=_convolutions(_LAST_BLOCKS, 2),
)
BOTTLENECK = Case(
    name="bottleneck",
    build=lambda: SmallResNet(Bottleneck, expansion=4, width=4),
    slow_forward=slow_forward.bottleneck_resnet,
    head="fc",
    all_layers=(*_convolutions(_ALL_BLOCKS, 3), "layer1.0.downsample.0", "layer2.0.downsample.0"),
    last_block_layers=_convolutions(_LAST_BLOCKS, 3),
)
RESNEXT = Case(
    name="resnext",
    build=lambda: SmallResNet(Bottleneck, expansion=4, width=4, groups=2),
    slow_forward=slow_forward.resnext,
    head="fc",
    all_layers=BOTTLENECK.all_layers,
    last_block_layers=BOTTLENECK.last_block_layers,
)
GROUPED = Case(
    name="grouped",
    build=GroupedNet,
    slow_forward=slow_forward.grouped_net,
    head="head",
    all_layers=("grouped", "depthwise", "pointwise", "hidden"),
)
CASES = (BASIC, BOTTLENECK, RESNEXT, GROUPED)


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter and statistic of batch norm a value of its own, so that none hides behind 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if not isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                continue
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
            ):
                if isinstance(tensor, Tensor):
                    tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
    return network


def seeded(maker: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Returns the network that `maker` makes, with seeded weights and statistics, in train mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomised(maker(), seed)


def build(case: Case, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    return seeded(case.build, seed).to(dtype)


def batch(
    rows: int, seed: int = 0, num_classes: int = 5, size: int = 8, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (x, x_adv, y): images [rows, 3, size, size] in [0, 1], others not far away, labels [rows]."""
    generator = torch.Generator().manual_seed(1000 + seed)
    x = torch.rand(rows, 3, size, size, generator=generator, dtype=dtype)
    offset = 0.2 * torch.rand(x.shape, generator=generator, dtype=dtype) - 0.1
    y = torch.randint(num_classes, (rows,), generator=generator)
    return x, (x + offset).clamp(0, 1), y
