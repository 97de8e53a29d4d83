"""A backbone with its head and its input pipeline: images in [0, 1] in, logits out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from distributed_autolora.config import IMAGENET_MEAN, IMAGENET_STD
from distributed_autolora.config_reading import nearest
from distributed_autolora.errors import UserError
from distributed_autolora.models.small_resnet import SmallResNet
from distributed_autolora.models.weights import load_backbone

HEAD = "fc"
_TORCHVISION_RESNETS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
BACKBONES = ("small_resnet", *_TORCHVISION_RESNETS)


class Classifier(nn.Module):
    """Up-samples and normalises inside the model, so that an attack lives in plain pixel values.

    Args:
        backbone: network with its head; its parameter names stay its own.
        mean: one value a channel, subtracted from images in [0, 1].
        std: one positive value a channel, divided by.
        input_size: side that images are up-sampled to by pixel replication; None: left as they are.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], input_size: int | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.input_size = input_size
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    @property
    def head_name(self) -> str:
        """Name of the classification layer inside `backbone`, such as "fc"."""
        return HEAD

    @property
    def head(self) -> nn.Linear:
        """The classification layer."""
        layer = self.backbone.get_submodule(self.head_name)
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Returns [n, classes] logits of [n, C, H, W] images in [0, 1]."""
        if self.input_size is not None:
            x = F.interpolate(x, size=(self.input_size, self.input_size), mode="nearest")
        # No clamp: inside [0, 1] it changes nothing, and its gradient is zero at 0 and 1, which would hide
        # every black or white pixel from an attack.
        logits: Tensor = self.backbone((x - self.mean) / self.std)
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Returns what the head would see for [n, C, H, W] images, [n, features]."""
        seen: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self(x)
        finally:
            hook.remove()
        return seen[0]


def build(
    backbone: str = "resnet18",
    num_classes: int = 10,
    weights: str | None = None,
    *,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    input_size: int | None = None,
) -> Classifier:
    """Builds a classifier that takes images in [0, 1] and normalises inside.

    Args:
        backbone: one of `BACKBONES`.
        num_classes: outputs of the fresh head.
        weights: file of pre-trained weights (see `load_backbone`); None: random.
        mean: one value a channel; its length is the number of input channels.
        std: one value a channel.
        input_size: nearest-neighbour up-sampling inside the model, in pixels; None: none.

    Raises:
        UserError: for an unknown backbone, or weights that do not fit.
    """
    if backbone == "small_resnet":
        network: nn.Module = SmallResNet(in_channels=len(mean), num_classes=num_classes)
    elif backbone in _TORCHVISION_RESNETS:
        if len(mean) != 3:
            raise UserError(f"{backbone} takes 3 channels, but model.mean has {len(mean)}.")
        network = torchvision.models.get_model(backbone, weights=None, num_classes=num_classes)
    else:
        raise UserError(
            f'There is no backbone "{backbone}".{nearest(backbone, list(BACKBONES))} Known: {", ".join(BACKBONES)}.'
        )
    if weights is not None:
        load_backbone(network, weights, head=HEAD)
    return Classifier(network, mean, std, input_size)
