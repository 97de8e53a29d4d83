"""Keyed random numbers with unbounded integers, one at a time, and the crops and flips that they decide, by pixel."""

import torch
from torch import Tensor

_STREAM_NUMBERS = {"order": 1, "augmentation": 2, "attack": 3, "natural_accuracy": 4, "head": 5, "split": 6}
_GOLDEN = 0x9E3779B97F4A7C15


def _mix(word: int) -> int:
    word %= 2**64
    word = (word ^ word // 2**30) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ word // 2**27) * 0x94D049BB133111EB % 2**64
    return word ^ word // 2**31


def _row_hash(seed: int, stream: str, epoch: int, row: int) -> int:
    key = 0
    for part in (seed, _STREAM_NUMBERS[stream], epoch):
        key = _mix((key ^ part) + _GOLDEN)
    return _mix((row + 1) * _GOLDEN + key)


def uniform(seed: int, stream: str, epoch: int, row: int, count: int) -> list[float]:
    """Returns the first `count` numbers of a row."""
    start = _row_hash(seed, stream, epoch, row)
    return [_mix(start + number * _GOLDEN) // 2**40 / 2**24 for number in range(1, count + 1)]


def permutation(seed: int, stream: str, epoch: int, count: int) -> list[int]:
    return sorted(range(count), key=lambda row: (_mix(_row_hash(seed, stream, epoch, row) + _GOLDEN) % 2**63, row))


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
