"""The switch for TF32: float32 products and convolutions with 10 bits of mantissa.

A GPU's convolutions use TF32 by default, which can move an image across the decision boundary. Evaluations must not
depend on it; an attack and a stochastic gradient may.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_BACKENDS: Any = torch.backends
_OPERATORS = (
    *(_BACKENDS.cuda.matmul, _BACKENDS.cudnn.conv, _BACKENDS.cudnn.rnn),
    *(_BACKENDS.mkldnn.matmul, _BACKENDS.mkldnn.conv, _BACKENDS.mkldnn.rnn),
)


def tf32_off() -> None:
    """Turns TF32 off in this process, and makes cuDNN use the same deterministic kernels every time."""
    _set_cuda(matmul=False, convolution=False)
    # `benchmark` takes the kernels that were fastest in this process; those of a resumed run may round differently.
    _BACKENDS.cudnn.benchmark, _BACKENDS.cudnn.deterministic = False, True


@contextmanager
def allow_tf32(allowed: bool) -> Iterator[None]:
    """Turns TF32 on for the block, on CUDA devices alone, or off, in oneDNN too."""
    before = [operator.fp32_precision for operator in _OPERATORS]
    _set_cuda(matmul=allowed, convolution=allowed)
    for operator in () if allowed else _OPERATORS:
        operator.fp32_precision = "ieee"
    try:
        yield
    finally:
        _set_cuda(matmul=before[0] == "tf32", convolution=before[1] == "tf32")
        for operator, precision in zip(_OPERATORS, before, strict=True):
            operator.fp32_precision = precision


def _set_cuda(matmul: bool, convolution: bool) -> None:
    # These older switches set the newer ones, `fp32_precision`, as well; reading them raises where the two differ.
    _BACKENDS.cuda.matmul.allow_tf32, _BACKENDS.cudnn.allow_tf32 = matmul, convolution
