"""Random crop after zero padding, and horizontal flip: one image, one pixel at a time."""

import torch
from torch import Tensor

from tests.reference.keyed import uniform


def crop_flip(image: Tensor, row: int, *, seed: int, epoch: int, stream: str, padding: int) -> Tensor:
    """Returns the augmented uint8 [C, H, W] image of one row."""
    down, across, mirror = uniform(seed, stream, epoch, row, 3)
    top, left = int(down * (2 * padding + 1)), int(across * (2 * padding + 1))
    channels, height, width = image.shape
    result = torch.zeros_like(image)
    for channel in range(channels):
        for y in range(height):
            for x in range(width):
                from_y = y + top - padding
                from_x = (width - 1 - x if mirror < 0.5 else x) + left - padding
                if 0 <= from_y < height and 0 <= from_x < width:
                    result[channel, y, x] = image[channel, from_y, from_x]
    return result
