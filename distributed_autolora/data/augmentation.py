"""Augmentation on the device, drawn per row."""

import torch
from torch import Tensor
from torch.nn import functional as F

from distributed_autolora.core.keyed_random import keyed_uniform


def crop_flip(
    images: Tensor, rows: Tensor, *, seed: int, epoch: int, stream: str = "augmentation", padding: int = 4
) -> Tensor:
    """Crops each zero-padded image at a random place and mirrors every second one, on average.

    Args:
        images: uint8 [n, C, H, W].
        rows: int64 [n], stable row positions on the same device; a row's result depends on nothing else.
        epoch: from 1; with the seed and the stream, the key of the draws (`keyed_uniform`).
        padding: zero pixels added at each side before the crop.
    """
    n, channels, height, width = images.shape
    device = images.device
    draws = keyed_uniform(seed, stream, epoch, rows, (3,))
    offsets = (draws[:, :2] * (2 * padding + 1)).long()
    columns = torch.arange(width, device=device).expand(n, width)
    columns = torch.where(draws[:, 2:] < 0.5, columns.flip(1), columns) + offsets[:, 1:]
    lines = torch.arange(height, device=device) + offsets[:, :1]
    padded = F.pad(images, (padding,) * 4)
    return padded[
        torch.arange(n, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[None, :, None, None],
        lines[:, None, :, None],
        columns[:, None, None, :],
    ]


def to_unit_interval(images: Tensor) -> Tensor:
    """Turns uint8 images 0 .. 255 into float32 images in [0, 1]."""
    return images.to(torch.float32) / 255
