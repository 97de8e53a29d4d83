"""Where float32 may be TF32 and where it may not; the settings, not what a GPU makes of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from distributed_autolora.core.fast_attack.float32 import exact_float32, tensor_float32

GPU, CPU = torch.device("cuda"), torch.device("cpu")
BACKENDS: Any = torch.backends


def tf32() -> tuple[bool, bool]:
    """Returns whether products and convolutions may be TF32."""
    matmul, convolution = BACKENDS.cuda.matmul.fp32_precision, BACKENDS.cudnn.conv.fp32_precision
    # PyTorch refuses to read its older switches, which libraries do, where they and the newer ones contradict.
    assert torch.backends.cuda.matmul.allow_tf32 == (matmul == "tf32")
    assert torch.backends.cudnn.allow_tf32 == (convolution == "tf32")
    return matmul == "tf32", convolution == "tf32"


@pytest.fixture(autouse=True)
def _settings_are_given_back() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    kernels = BACKENDS.cudnn.benchmark, BACKENDS.cudnn.deterministic
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    BACKENDS.cudnn.benchmark, BACKENDS.cudnn.deterministic = kernels


def test_pytorch_itself_lets_convolutions_be_tf32() -> None:
    """Asked in a process of its own: others in this one may have set it."""
    code = "import torch; print(torch.backends.cudnn.conv.fp32_precision)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "tf32"


def test_a_process_computes_exactly_but_for_blocks_that_lift_it() -> None:
    exact_float32()
    assert tf32() == (False, False)
    with tensor_float32(GPU):
        assert tf32() == (True, True)
    assert tf32() == (False, False)
    assert (BACKENDS.cudnn.benchmark, BACKENDS.cudnn.deterministic) == (False, True)


def test_a_block_that_fails_gives_the_precision_back() -> None:
    exact_float32()
    with pytest.raises(ArithmeticError), tensor_float32(GPU):
        raise ArithmeticError
    assert tf32() == (False, False)


def test_on_a_cpu_nothing_is_set() -> None:
    exact_float32()
    with tensor_float32(CPU):
        assert tf32() == (False, False)
