"""How CUDA devices compute float32: exactly wherever something is judged, as TF32 where a search or a step asks for it.

A GPU's convolutions use TF32 unless they are told not to: 10 bits of mantissa, enough to move an image across the
decision boundary. What is judged must not depend on it; an attack and a stochastic gradient may.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def exact_float32() -> None:
    """Makes this process compute float32 as float32 on CUDA devices, with the same kernels every time.

    `tensor_float32` lifts the first half for a block.
    """
    _allow(matmul=False, cudnn=False)
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
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    _allow(matmul=True, cudnn=True)
    try:
        yield
    finally:
        _allow(*before)


def _allow(matmul: bool, cudnn: bool) -> None:
    # These switches set PyTorch's newer ones, `fp32_precision`, as well; set alone, those make these raise when read.
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
