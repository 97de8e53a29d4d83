"""A ResNet for images of about 28 pixels."""

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

_WIDTHS = (16, 32, 64)


class SmallResNet(nn.Module):
    """CIFAR-style ResNet of three stages of two basic blocks, 0.18 M parameters, torchvision's names."""

    def __init__(self, in_channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, _WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(_WIDTHS[0], _WIDTHS[0], stride=1)
        self.layer2 = _stage(_WIDTHS[0], _WIDTHS[1], stride=2)
        self.layer3 = _stage(_WIDTHS[1], _WIDTHS[2], stride=2)
        self.fc = nn.Linear(_WIDTHS[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Returns [n, num_classes] logits of [n, in_channels, H, W] normalised images."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(torch.flatten(x.mean((2, 3)), 1))
        return logits


def _stage(width_in: int, width_out: int, stride: int) -> nn.Sequential:
    downsample = None
    if stride != 1:
        downsample = nn.Sequential(
            nn.Conv2d(width_in, width_out, 1, stride=stride, bias=False), nn.BatchNorm2d(width_out)
        )
    return nn.Sequential(BasicBlock(width_in, width_out, stride, downsample), BasicBlock(width_out, width_out))
