"""How CUDA devices compute float32: exactly wherever something is judged, as TF32 where a search or a step asks for it.

A GPU's convolutions use TF32 unless they are told not to: 10 bits of mantissa, enough to move an image across the
decision boundary. What is judged must not depend on it; an attack and a stochastic gradient may.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch


def exact_float32() -> None:
    """Makes this process compute float32 as float32 on CUDA devices, with the same kernels every time.

    `tensor_float32` lifts the first half for a block.
    """
    _set_precision("ieee")
    # Not `benchmark`: it takes the kernels that were fastest in this process, and those of a resumed run may be
    # others that round differently. For the same reason none that add up in the order in which threads come.
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True


@contextmanager
def tensor_float32(device: torch.device) -> Iterator[None]:
    """Lets products and convolutions of float32 numbers be TF32 for the block.

    Args:
        device: where the block computes; nothing happens for one that is not CUDA's.
    """
    if device.type != "cuda":
        yield
        return
    before = [operator.fp32_precision for operator in _operators()]
    _set_precision("tf32")
    try:
        yield
    finally:
        for operator, precision in zip(_operators(), before, strict=True):
            operator.fp32_precision = precision


def _operators() -> list[Any]:
    backends: Any = torch.backends
    return [backends.cuda.matmul, backends.cudnn.conv]


def _set_precision(precision: Literal["ieee", "tf32"]) -> None:
    for operator in _operators():
        operator.fp32_precision = precision
