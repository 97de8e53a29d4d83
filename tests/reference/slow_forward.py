"""Forward passes of the test networks, written out layer by layer on plain dicts of tensors."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

_MOMENTUM = 0.1
_EPS = 1e-5


@dataclass
class SlowPass:
    """One forward in train mode: reads parameters, adds `deltas` to weights, updates `buffers` by formula."""

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    deltas: dict[str, Tensor] = field(default_factory=dict)

    def weight(self, name: str) -> Tensor:
        weight = self.parameters[f"{name}.weight"]
        return weight + self.deltas[name] if name in self.deltas else weight

    def conv(self, name: str, x: Tensor, *, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
        bias = self.parameters.get(f"{name}.bias")
        return F.conv2d(x, self.weight(name), bias, stride=stride, padding=padding, groups=groups)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return torch.einsum("ni,oi->no", x, self.weight(name)) + self.parameters[f"{name}.bias"]

    def batch_norm(self, name: str, x: Tensor) -> Tensor:
        count = x.shape[0] * x.shape[2] * x.shape[3]
        mean = x.sum(dim=(0, 2, 3)) / count
        centred = x - mean[:, None, None]
        squares = (centred**2).sum(dim=(0, 2, 3))
        for key, value in (("running_mean", mean), ("running_var", squares / (count - 1))):
            old = self.buffers[f"{name}.{key}"]
            self.buffers[f"{name}.{key}"] = (1 - _MOMENTUM) * old + _MOMENTUM * value.detach()
        self.buffers[f"{name}.num_batches_tracked"] = self.buffers[f"{name}.num_batches_tracked"] + 1
        normalised = centred / torch.sqrt(squares / count + _EPS)[:, None, None]
        weight, bias = self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"]
        return normalised * weight[:, None, None] + bias[:, None, None]


def basic_resnet(net: SlowPass, x: Tensor) -> Tensor:
    """Two stages of two basic blocks; the first block of the second stage halves the image."""
    x = torch.relu(net.batch_norm("bn1", net.conv("conv1", x, padding=1)))
    for at, stride in (("layer1.0", 1), ("layer1.1", 1), ("layer2.0", 2), ("layer2.1", 1)):
        shortcut = x
        if at == "layer2.0":
            shortcut = net.batch_norm(f"{at}.downsample.1", net.conv(f"{at}.downsample.0", x, stride=stride))
        y = torch.relu(net.batch_norm(f"{at}.bn1", net.conv(f"{at}.conv1", x, stride=stride, padding=1)))
        y = net.batch_norm(f"{at}.bn2", net.conv(f"{at}.conv2", y, padding=1))
        x = torch.relu(y + shortcut)
    return net.linear("fc", x.sum(dim=(2, 3)) / (x.shape[2] * x.shape[3]))


def bottleneck_resnet(net: SlowPass, x: Tensor, groups: int = 1) -> Tensor:
    x = torch.relu(net.batch_norm("bn1", net.conv("conv1", x, padding=1)))
    for at, stride in (("layer1.0", 1), ("layer1.1", 1), ("layer2.0", 2), ("layer2.1", 1)):
        shortcut = x
        if at in ("layer1.0", "layer2.0"):
            shortcut = net.batch_norm(f"{at}.downsample.1", net.conv(f"{at}.downsample.0", x, stride=stride))
        y = torch.relu(net.batch_norm(f"{at}.bn1", net.conv(f"{at}.conv1", x)))
        y = net.conv(f"{at}.conv2", y, stride=stride, padding=1, groups=groups)
        y = net.conv(f"{at}.conv3", torch.relu(net.batch_norm(f"{at}.bn2", y)))
        x = torch.relu(net.batch_norm(f"{at}.bn3", y) + shortcut)
    return net.linear("fc", x.sum(dim=(2, 3)) / (x.shape[2] * x.shape[3]))


def resnext(net: SlowPass, x: Tensor) -> Tensor:
    return bottleneck_resnet(net, x, groups=2)


def grouped_net(net: SlowPass, x: Tensor) -> Tensor:
    x = torch.relu(net.batch_norm("bn1", net.conv("stem", x, padding=1)))
    x = torch.relu(net.batch_norm("bn2", net.conv("grouped", x, stride=2, padding=1, groups=2)))
    x = net.conv("pointwise", net.conv("depthwise", x, padding=1, groups=12))
    x = torch.relu(net.batch_norm("bn3", x))
    x = x.sum(dim=(2, 3)) / (x.shape[2] * x.shape[3])
    return net.linear("head", torch.tanh(net.linear("hidden", x)))
