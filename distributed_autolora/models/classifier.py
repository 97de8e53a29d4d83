"""Classifiers: a backbone with its head and input normalisation; images in [0, 1] in, logits out."""

import torch
import torch.fx
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from distributed_autolora.config import IMAGENET_MEAN, IMAGENET_STD
from distributed_autolora.core.attacks import eval_mode
from distributed_autolora.errors import UserError
from distributed_autolora.models.own_backbone import PREFIX as OWN_PREFIX
from distributed_autolora.models.own_backbone import own_backbone
from distributed_autolora.models.small_resnet import SmallResNet
from distributed_autolora.models.timm_backbone import PREFIX, timm_backbone, timm_names
from distributed_autolora.models.weights import load_backbone
from distributed_autolora.records.reader import nearest

_HEAD = "fc"
_TORCHVISION_RESNETS: tuple[str, ...] = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
_TORCHVISION_RESNETS += ("resnext50_32x4d", "wide_resnet50_2", "wide_resnet101_2")
BACKBONES = ("small_resnet", *_TORCHVISION_RESNETS)


class Classifier(nn.Module):
    """A backbone that up-samples and normalises inside, so that attacks work on plain pixel values.

    Args:
        backbone: network with its head; its parameter names stay its own.
        mean, std: one value a channel; the mean is subtracted from images in [0, 1], then the std divides.
        input_size: side that images are up-sampled to by pixel replication; None: left as they are.
        head_name: name of the classification layer inside `backbone`, such as "fc" or "head.fc".
        fixed_size: the only side of images that `backbone` takes; None: any.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        input_size: int | None = None,
        *,
        head_name: str = _HEAD,
        fixed_size: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.input_size = backbone, input_size
        self.head_name, self.fixed_size = head_name, fixed_size
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

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
        _check_size(x, self.fixed_size)
        # No clamp: inside [0, 1] it changes nothing, and its gradient is zero at 0 and 1, which would hide
        # every black or white pixel from an attack.
        logits: Tensor = self.backbone((x - self.mean) / self.std)
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Returns the input of the head for [n, C, H, W] images, [n, features]."""
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
    weights_digest: str | None = None,
    allow_pickle: bool = False,
) -> Classifier:
    """Builds a classifier that takes images in [0, 1] and normalises inside.

    Args:
        backbone: one of `BACKBONES`, or "timm/" and the name of a timm network.
        weights: file or URI of pre-trained weights (see `load_backbone`); None: random.
        mean: one value a channel, as in `std`; its length is the number of input channels.
        input_size: see `Classifier`; a network for images of one size is built for this one.
        weights_digest, allow_pickle: see `weight_files.read_checkpoint`.

    Raises:
        UserError: for an unknown backbone, or weights that do not fit.
    """
    network, head, fixed_size = _fresh_network(backbone, num_classes, len(mean), input_size)
    if weights is not None:
        load_backbone(network, weights, head=head, mean=mean, std=std, digest=weights_digest, allow_pickle=allow_pickle)
    return Classifier(network, mean, std, input_size, head_name=head, fixed_size=fixed_size)


def _fresh_network(
    backbone: str, num_classes: int, channels: int, input_size: int | None
) -> tuple[nn.Module, str, int | None]:
    if backbone.startswith(OWN_PREFIX):
        return *own_backbone(backbone, num_classes), None
    if backbone == "small_resnet":
        return SmallResNet(in_channels=channels, num_classes=num_classes), _HEAD, None
    if backbone in _TORCHVISION_RESNETS:
        if channels != 3:
            raise UserError(
                f"{backbone} takes 3 channels, not {channels}: give --model.mean and --model.std 3 entries."
            )
        return torchvision.models.get_model(backbone, weights=None, num_classes=num_classes), _HEAD, None
    if backbone.startswith(PREFIX):
        return timm_backbone(backbone, num_classes, channels, input_size)
    raise UserError(
        f'There is no backbone "{backbone}".{nearest(backbone, [*BACKBONES, *timm_names()])} '
        f"Known: {', '.join(BACKBONES)}, and {PREFIX}NAME for the networks of timm."
    )


@torch.no_grad()
def check_takes_images(classifier: Classifier, size: tuple[int, int]) -> None:
    """Classifies one black image of (width, height) pixels on the CPU; the classifier's state stays as it is.

    Raises:
        UserError: when the backbone does not take such images.
    """
    width, height = size
    try:
        with eval_mode(classifier):
            classifier(classifier.mean.new_zeros(1, classifier.mean.shape[1], height, width))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"The backbone does not take images of {width} x {height} pixels ({reason}): "
            "give --model.input-size, which images are up-sampled to, or --data.image-size."
        ) from error


@torch.fx.wrap
def _check_size(x: Tensor, fixed_size: int | None) -> None:
    """Refuses images of another size; not traced, so that a traced network refuses them too."""
    if fixed_size is not None and x.shape[-2:] != (fixed_size, fixed_size):
        raise UserError(
            f"The backbone takes images of {fixed_size} x {fixed_size} pixels, not {x.shape[-2]} x {x.shape[-1]}: "
            "give --model.input-size, which images are up-sampled to and the backbone is built for."
        )
