"""Comparisons that several tests make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distributed_autolora.core.lora import LowRankBranch
from distributed_autolora.core.schedules import LossWeights
from tests.reference.networks import Case
from tests.reference.slow_objectives import Factors

WEIGHTS = LossWeights(natural_weight=0.3, kl_weight=4.2)
SLOW_WEIGHTS: dict[str, Any] = {"lora_rank": 3, "natural_weight": 0.3, "kl_weight": 4.2}


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Returns every parameter's gradient, zeros where there is none."""
    return {name: gradient(value) for name, value in module.named_parameters()}


def gradient(value: Tensor) -> Tensor:
    """Returns the gradient of a leaf, zeros where there is none."""
    return torch.zeros_like(value) if value.grad is None else value.grad.detach().clone()


def assert_tight(actual: object, expected: object, name: str = "") -> None:
    """Compares two tensors, or numbers, to what float64 rounding explains."""
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-11, msg=lambda text: f"{name} {text}")


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Compares two results of a network computed in `dtype`: half of the format's digits agree, whatever the kernels.

    Rounding through a few layers costs a digit or two; a wrong layer changes the first ones.
    """
    assert actual.shape == expected.shape
    assert expected.norm() > 0, "the comparison would be of zeros"
    difference = (actual.detach().double() - expected.detach().double()).norm()
    assert difference <= torch.finfo(dtype).eps ** 0.5 * expected.detach().double().norm()


def assert_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compares by name, to float64 rounding, and names the tensor that differs."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_tight(actual[name], value, name)


def branch_with_effect(case: Case, network: nn.Module, *, lora_rank: int = 3, lora_scope: str = "all") -> LowRankBranch:
    """Returns a float64 branch whose B is not zero, so that the natural forward differs from the plain one."""
    branch = LowRankBranch(network, lora_rank=lora_rank, lora_scope=lora_scope, head=case.head).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for a, b in branch.factors().values():
            a.copy_(0.5 * torch.randn(a.shape, generator=generator, dtype=a.dtype))
            b.copy_(0.2 * torch.randn(b.shape, generator=generator, dtype=b.dtype))
    return branch


def copied_factors(branch: LowRankBranch) -> Factors:
    """Returns the branch's factors as plain tensors."""
    return {name: (a.detach().clone(), b.detach().clone()) for name, (a, b) in branch.factors().items()}
