"""Where float32 may be TF32 and where it may not; the settings, not what a GPU makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from distributed_autolora.core.float32 import exact_float32, tensor_float32

GPU, CPU = torch.device("cuda"), torch.device("cpu")
BACKENDS: Any = torch.backends


def precisions() -> tuple[str, str]:
    return BACKENDS.cuda.matmul.fp32_precision, BACKENDS.cudnn.conv.fp32_precision


@pytest.fixture(autouse=True)
def _settings_are_given_back() -> Iterator[None]:
    before, kernels = precisions(), (BACKENDS.cudnn.benchmark, BACKENDS.cudnn.deterministic)
    yield
    BACKENDS.cuda.matmul.fp32_precision, BACKENDS.cudnn.conv.fp32_precision = before
    BACKENDS.cudnn.benchmark, BACKENDS.cudnn.deterministic = kernels


def test_pytorch_itself_lets_convolutions_be_tf32() -> None:
    assert precisions()[1] == "tf32"


def test_a_process_computes_exactly_but_for_blocks_that_lift_it() -> None:
    exact_float32()
    assert precisions() == ("ieee", "ieee")
    with tensor_float32(GPU):
        assert precisions() == ("tf32", "tf32")
    assert precisions() == ("ieee", "ieee")
    assert (BACKENDS.cudnn.benchmark, BACKENDS.cudnn.deterministic) == (False, True)


def test_a_block_that_fails_gives_the_precision_back() -> None:
    exact_float32()
    with pytest.raises(ArithmeticError), tensor_float32(GPU):
        raise ArithmeticError
    assert precisions() == ("ieee", "ieee")


def test_on_a_cpu_nothing_is_set() -> None:
    exact_float32()
    with tensor_float32(CPU):
        assert precisions() == ("ieee", "ieee")
