"""AutoLoRa (Eq. 5) and vanilla RFT (Eq. 1) as the released code computes them: slow, explicit, one process."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Self

import torch
from torch import Tensor, nn

from tests.reference.slow_forward import SlowPass

Factors = dict[str, tuple[Tensor, Tensor]]
Forward = Callable[[SlowPass, Tensor], Tensor]


@dataclass
class SlowResult:
    """Loss, its weighted parts, gradients by parameter name, and the buffers after the step."""

    total: Tensor
    parts: dict[str, Tensor]
    gradients: dict[str, Tensor]
    factor_gradients: Factors
    buffers: dict[str, Tensor]


@dataclass
class SlowState:
    """Leaf copies of everything that training can change."""

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    factors: Factors

    @classmethod
    def of(cls, network: nn.Module, factors: Factors | None = None) -> Self:
        return cls(
            {name: value.detach().clone().requires_grad_() for name, value in network.named_parameters()},
            {name: value.detach().clone() for name, value in network.named_buffers()},
            {name: (_leaf(a), _leaf(b)) for name, (a, b) in (factors or {}).items()},
        )


def slow_autolora(
    state: SlowState,
    forward: Forward,
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    *,
    head: str,
    lora_rank: int,
    natural_weight: float,
    kl_weight: float,
    soft_labels: str,
    branch_buffers: dict[str, Tensor] | None = None,
) -> SlowResult:
    """Computes one step with `requires_grad` switched around the two forwards, natural first.

    The natural forward updates `branch_buffers`, or else the network's own.
    """
    extractor = [value for name, value in state.parameters.items() if not name.startswith(f"{head}.")]
    low_rank = [factor for pair in state.factors.values() for factor in pair]

    _require_gradients(extractor, False)
    _require_gradients(low_rank, True)
    deltas = {
        name: slow_delta(a, b, state.parameters[f"{name}.weight"].shape, lora_rank)
        for name, (a, b) in state.factors.items()
    }
    statistics = state.buffers if branch_buffers is None else branch_buffers
    natural_logits = forward(SlowPass(state.parameters, statistics, deltas), x)

    _require_gradients(extractor, True)
    _require_gradients(low_rank, False)
    adversarial_logits = forward(SlowPass(state.parameters, state.buffers), x_adv)

    _require_gradients(low_rank, True)
    kl = sum_kl(natural_logits, adversarial_logits, soft_labels) / len(y)
    parts = {
        "natural": natural_weight * sum_cross_entropy(natural_logits, y) / len(y),
        "adversarial": (1 - natural_weight) * sum_cross_entropy(adversarial_logits, y) / len(y),
        "kl": kl_weight * kl,
    }
    return _backward(state, parts)


def slow_vanilla(
    state: SlowState, forward: Forward, x: Tensor, x_adv: Tensor, y: Tensor, *, trades_beta: float, soft_labels: str
) -> SlowResult:
    """Computes one step of TRADES on a given adversarial batch, the adversarial forward first."""
    adversarial_logits = forward(SlowPass(state.parameters, state.buffers), x_adv)
    natural_logits = forward(SlowPass(state.parameters, state.buffers), x)
    kl = sum_kl(natural_logits, adversarial_logits, soft_labels) / len(y)
    return _backward(state, {"natural": sum_cross_entropy(natural_logits, y) / len(y), "kl": trades_beta * kl})


def slow_delta(a: Tensor, b: Tensor, shape: torch.Size, lora_rank: int) -> Tensor:
    """Returns the change of a weight: entry n of the product, counted row by row, is entry n of the weight, / rank."""
    low_rank = torch.einsum("oj,ji->oi", b, a)
    rows, columns = _places(tuple(shape), low_rank.shape[1])
    return low_rank[rows, columns].reshape(shape) / lora_rank


@cache
def _places(shape: tuple[int, ...], product_columns: int) -> tuple[Tensor, Tensor]:
    """Finds for every entry of a weight, last index fastest, its row and column in the product."""
    rows, columns = [], []
    for entry, index in enumerate(product(*map(range, shape))):
        place = 0
        for size, position in zip(shape, index, strict=True):
            place = place * size + position
        assert place == entry, "the weight is walked through row by row"
        rows.append(place // product_columns)
        columns.append(place % product_columns)
    return torch.tensor(rows), torch.tensor(columns)


def _backward(state: SlowState, parts: dict[str, Tensor]) -> SlowResult:
    total = torch.stack(list(parts.values())).sum()
    total.backward()
    return SlowResult(
        total=total.detach(),
        parts={name: part.detach() for name, part in parts.items()},
        gradients={name: _gradient(value) for name, value in state.parameters.items()},
        factor_gradients={name: (_gradient(a), _gradient(b)) for name, (a, b) in state.factors.items()},
        buffers=state.buffers,
    )


def sum_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    total = logits.new_zeros(())
    for row, label in enumerate(y.tolist()):
        total = total + torch.log(torch.exp(logits[row]).sum()) - logits[row, label]
    return total


def sum_kl(natural_logits: Tensor, adversarial_logits: Tensor, soft_labels: str) -> Tensor:
    """Returns the sum of p_nat (log p_nat - log p_adv) over rows and classes."""
    total = natural_logits.new_zeros(())
    for natural, adversarial in zip(natural_logits, adversarial_logits, strict=True):
        target, estimate = (torch.exp(logits) / torch.exp(logits).sum() for logits in (natural, adversarial))
        target = target.detach() if soft_labels == "detached" else target
        total = total + (target * (torch.log(target) - torch.log(estimate))).sum()
    return total


def _leaf(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_()


def _gradient(value: Tensor) -> Tensor:
    return torch.zeros_like(value) if value.grad is None else value.grad


def _require_gradients(values: Iterable[Tensor], required: bool) -> None:
    for value in values:
        value.requires_grad_(required)
