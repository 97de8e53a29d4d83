"""Comparisons that several tests make."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distributed_autolora.core.lora import LowRankBranch
from distributed_autolora.core.schedules import LossWeights
from tests.reference.networks import Case
from tests.reference.slow_objectives import Factors

Rows = tuple[Tensor, Tensor, Tensor]
"""x, x_adv, y."""
WEIGHTS = LossWeights(natural_weight=0.3, kl_weight=4.2)
SLOW_WEIGHTS: dict[str, Any] = {"lora_rank": 3, "natural_weight": 0.3, "kl_weight": 4.2}


def values(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in tensors}


def gradients(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {name: gradient(tensor) for name, tensor in tensors}


def gradient(value: Tensor) -> Tensor:
    return torch.zeros_like(value) if value.grad is None else value.grad.detach().clone()


def assert_tight(actual: object, expected: object, name: str = "") -> None:
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
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_tight(actual[name], value, name)


def assert_shards_add_up(parameters: Iterable[nn.Parameter], whole: Tensor, shards: Sequence[Tensor]) -> None:
    """Compares the sum of the shards' losses, and of their gradients, to those of the batch."""
    parameters = list(parameters)
    assert_tight(sum(shards), whole)
    for one, *others in zip(*(torch.autograd.grad(loss, parameters) for loss in (whole, *shards)), strict=True):
        assert_tight(sum(others), one)


def take_both_ways(
    objective: nn.Module, slow_parameters: list[Tensor], batches: Iterable[Rows], slow_step: Callable[..., object]
) -> None:
    """Trains an objective, and an oracle's parameters by the gradients of `slow_step(x, x_adv, y)`, with momentum."""
    fast, slow = (
        torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4)
        for parameters in (list(objective.parameters()), slow_parameters)
    )
    for rows in batches:
        fast.zero_grad()
        objective(*rows).total.backward()
        fast.step()
        slow.zero_grad()
        slow_step(*rows)
        slow.step()


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
    return {name: (a.detach().clone(), b.detach().clone()) for name, (a, b) in branch.factors().items()}
