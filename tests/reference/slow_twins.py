"""TWINS (Eq. 2) and gradient similarity (Eq. 3, 4) as two explicit networks: slow, one row and formula at a time."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from tests.reference.slow_forward import SlowPass
from tests.reference.slow_objectives import Forward, sum_cross_entropy, sum_kl

_EPS = 1e-5


class FixedStatisticsPass(SlowPass):
    """A forward that normalises with the statistics in `buffers` and changes nothing."""

    def batch_norm(self, name: str, x: Tensor) -> Tensor:
        mean, variance = self.buffers[f"{name}.running_mean"], self.buffers[f"{name}.running_var"]
        scale = self.parameters[f"{name}.weight"] / torch.sqrt(variance + _EPS)
        shift = self.parameters[f"{name}.bias"] - mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


@dataclass
class SlowTwinsState:
    """Two networks: leaf parameters by name, equal objects where they are shared, and statistics of each."""

    adaptive: dict[str, Tensor]
    frozen: dict[str, Tensor]
    adaptive_buffers: dict[str, Tensor]
    frozen_buffers: dict[str, Tensor]

    @classmethod
    def of(cls, backbone: nn.Module, frozen: dict[str, Tensor]) -> Self:
        """Copies a backbone, and what its frozen path has in place of it: affine and statistics by name."""
        adaptive = {name: value.detach().clone().requires_grad_() for name, value in backbone.named_parameters()}
        buffers = {name: value.detach().clone() for name, value in backbone.named_buffers()}
        own = {name: value.detach().clone() for name, value in frozen.items()}
        own_affine = {name: value.requires_grad_() for name, value in own.items() if name in adaptive}
        own_statistics = {name: value for name, value in own.items() if name in buffers}
        return cls(adaptive, adaptive | own_affine, buffers, own_statistics)

    def frozen_affine(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.frozen.items() if value is not self.adaptive[name]}


def slow_twins(
    state: SlowTwinsState,
    forward: Forward,
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    *,
    twins_gamma: float,
    trades_beta: float,
    soft_labels: str,
) -> dict[str, Tensor]:
    """Returns the weighted parts of one step after their backward; rows before n // 2 take the frozen network."""
    n = len(y)
    half = n // 2
    adaptive = SlowPass(state.adaptive, state.adaptive_buffers)
    frozen = FixedStatisticsPass(state.frozen, state.frozen_buffers)
    adaptive_adv = forward(adaptive, x_adv[half:])
    adaptive_nat = forward(adaptive, x[half:])
    parts = {
        "natural": sum_cross_entropy(adaptive_nat, y[half:]) / (n - half),
        "kl": trades_beta * sum_kl(adaptive_nat, adaptive_adv, soft_labels) / n,
        "natural_frozen": x.new_zeros(()),
        "kl_frozen": x.new_zeros(()),
    }
    if half:
        frozen_nat, frozen_adv = forward(frozen, x[:half]), forward(frozen, x_adv[:half])
        parts["natural_frozen"] = twins_gamma * sum_cross_entropy(frozen_nat, y[:half]) / half
        parts["kl_frozen"] = twins_gamma * trades_beta * sum_kl(frozen_nat, frozen_adv, soft_labels) / n
    torch.stack(list(parts.values())).sum().backward()
    return {name: part.detach() for name, part in parts.items()}


def slow_similarity(
    state: SlowTwinsState,
    forward: Forward,
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    *,
    head: str,
    twins_gamma: float | None,
    soft_labels: str,
) -> float:
    """Returns the cosine for all given rows together, in eval mode; without gamma, of the adaptive network alone."""
    networks = [(1.0, FixedStatisticsPass(state.adaptive, state.adaptive_buffers))]
    if twins_gamma is not None:
        networks.append((twins_gamma, FixedStatisticsPass(state.frozen, state.frozen_buffers)))
    theta1 = [value for name, value in state.adaptive.items() if not name.startswith(f"{head}.")]
    natural, adversarial = [0.0] * sum(p.numel() for p in theta1), [0.0] * sum(p.numel() for p in theta1)
    for weight, network in networks:
        ce = sum_cross_entropy(forward(network, x), y)
        kl = sum_kl(forward(network, x), forward(network, x_adv), soft_labels)
        natural = [a + weight * b for a, b in zip(natural, _flat_gradient(ce, theta1), strict=True)]
        adversarial = [a + weight * b for a, b in zip(adversarial, _flat_gradient(kl, theta1), strict=True)]
    dot = math.fsum(a * b for a, b in zip(natural, adversarial, strict=True))
    return dot / math.sqrt(math.fsum(a * a for a in natural)) / math.sqrt(math.fsum(b * b for b in adversarial))


def _flat_gradient(loss: Tensor, parameters: list[Tensor]) -> list[float]:
    """The frozen network has no adaptive affine: there its gradient is 0."""
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    parts = [torch.zeros_like(p) if part is None else part for p, part in zip(parameters, found, strict=True)]
    return [value for part in parts for value in part.flatten().tolist()]
