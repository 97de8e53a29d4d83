"""Random numbers that belong to a row, not to a generator: the same on every device and number of workers."""

import math

import torch
from torch import Tensor

STREAMS = ("order", "augmentation", "attack", "natural_accuracy", "head", "split")
"""What randomness is drawn for; two streams of one seed, epoch and row are independent."""

_WORD = 2**64 - 1
# The odd constants of the splitmix64 generator (Steele, Lea and Flood, 2014).
_INCREMENT = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)


def keyed_uniform(seed: int, stream: str, epoch: int, rows: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Draws float32 [n, *shape] in [0, 1), multiples of 2^-24; a row's numbers do not depend on the other rows.

    Args:
        stream: one of `STREAMS`.
        epoch: epoch that the numbers are for; 0 where there is none.
        rows: int64 [n], stable row positions, on the device that the numbers are wanted on.

    Raises:
        ValueError: for an unknown stream, or rows that are not an int64 vector.
    """
    hashes = _row_hashes(_key(seed, stream, epoch), rows)
    count = math.prod(shape)
    counters = torch.arange(1, count + 1, device=rows.device) * _signed(_INCREMENT)
    bits = _finalise(hashes[:, None] + counters[None, :])
    top = (bits >> 40) & (2**24 - 1)
    return (top.to(torch.float32) * 2.0**-24).reshape(len(rows), *shape)


def keyed_permutation(seed: int, stream: str, epoch: int, count: int) -> Tensor:
    """Returns a permutation of 0 .. count - 1 as int64 [count]: the stable order of 63-bit hashes.

    Raises:
        ValueError: for an unknown stream.
    """
    return keyed_order(seed, stream, epoch, torch.arange(count))


def keyed_order(seed: int, stream: str, epoch: int, rows: Tensor) -> Tensor:
    """Returns int64 [n], the indices that put `rows` (int64 [n]) into the order of their own 63-bit hashes.

    Raises:
        ValueError: for an unknown stream, or rows that are not an int64 vector.
    """
    hashes = _finalise(_row_hashes(_key(seed, stream, epoch), rows) + _signed(_INCREMENT)) & (2**63 - 1)
    return torch.argsort(hashes, stable=True)


def _key(seed: int, stream: str, epoch: int) -> int:
    if stream not in STREAMS:
        raise ValueError(f'unknown random stream "{stream}"; known: {", ".join(STREAMS)}')
    key = 0
    for part in (seed, STREAMS.index(stream) + 1, epoch):
        key = _finalise_word((key ^ (part & _WORD)) + _INCREMENT)
    return key


def _row_hashes(key: int, rows: Tensor) -> Tensor:
    if rows.dtype != torch.int64 or rows.dim() != 1:
        raise ValueError(f"rows must be an int64 vector, not {rows.dtype} of shape {tuple(rows.shape)}")
    return _finalise((rows + 1) * _signed(_INCREMENT) + _signed(key))


def _finalise(words: Tensor) -> Tensor:
    """Mixes int64 words; integer tensors wrap around, so this is arithmetic modulo 2^64."""
    for shift, multiplier in zip(_SHIFTS, (*_MULTIPLIERS, 1), strict=True):
        # `>>` keeps the sign of an int64; the mask makes it the logical shift of an unsigned word.
        shifted = (words >> shift).bitwise_and_(2 ** (64 - shift) - 1)
        words = shifted.bitwise_xor_(words).mul_(_signed(multiplier))
    return words


def _finalise_word(word: int) -> int:
    word &= _WORD
    for shift, multiplier in zip(_SHIFTS, (*_MULTIPLIERS, 1), strict=True):
        word = ((word ^ (word >> shift)) * multiplier) & _WORD
    return word


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word
