"""Where float32 may be TF32 and where it may not; the settings, not what a GPU makes of them."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from distributed_autolora.core.fast_attack.tf32 import allow_tf32, tf32_off

BACKENDS: Any = torch.backends
ONEDNN = (BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv, BACKENDS.mkldnn.rnn)


def allowed() -> tuple[bool, bool]:
    matmul, convolution = BACKENDS.cuda.matmul.fp32_precision, BACKENDS.cudnn.conv.fp32_precision
    # PyTorch refuses to read its older switches, which libraries do, where they and the newer ones contradict.
    assert torch.backends.cuda.matmul.allow_tf32 == (matmul == "tf32")
    assert torch.backends.cudnn.allow_tf32 == (convolution == "tf32")
    return matmul == "tf32", convolution == "tf32"


@pytest.fixture(autouse=True)
def _settings_are_restored() -> Iterator[None]:
    kernels = BACKENDS.cudnn.benchmark, BACKENDS.cudnn.deterministic
    with allow_tf32(False):
        yield
    BACKENDS.cudnn.benchmark, BACKENDS.cudnn.deterministic = kernels


def test_pytorch_itself_lets_convolutions_be_tf32() -> None:
    """Asked in a process of its own: others in this one may have set it."""
    code = "import torch; print(torch.backends.cudnn.conv.fp32_precision)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "tf32"


def test_a_process_without_tf32_uses_it_only_in_blocks_that_allow_it() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    BACKENDS.cudnn.benchmark, BACKENDS.cudnn.deterministic = True, False
    assert allowed() == (True, True)
    tf32_off()
    assert (BACKENDS.cudnn.benchmark, BACKENDS.cudnn.deterministic) == (False, True)
    assert allowed() == (False, False)
    with allow_tf32(True):
        assert allowed() == (True, True)
        with allow_tf32(False):
            assert allowed() == (False, False)
        assert allowed() == (True, True)
    assert allowed() == (False, False)


def test_a_block_without_tf32_turns_it_off_in_onednn_too_and_restores_it() -> None:
    for operator in ONEDNN:
        operator.fp32_precision = "tf32"
    with allow_tf32(False):
        assert [operator.fp32_precision for operator in ONEDNN] == ["ieee"] * 3
    assert [operator.fp32_precision for operator in ONEDNN] == ["tf32"] * 3


def test_a_block_that_fails_restores_the_precision() -> None:
    with pytest.raises(ArithmeticError), allow_tf32(True):
        raise ArithmeticError
    assert allowed() == (False, False)
