"""Projected gradient descent as a textbook writes it, on a copy of the model, with `backward`."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def slow_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    num_steps: int,
    step_size: float,
    noise: Tensor | None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Returns the last iterate, [n, ...]; `noise` in [0, 1) sets the start, None starts at the clean image."""
    model = copy.deepcopy(model).eval()
    low, high = bounds
    offset = torch.zeros_like(x) if noise is None else (2 * noise - 1) * epsilon
    x_adv = (x + offset).clamp(low, high)
    for _ in range(num_steps):
        x_adv = x_adv.detach().clone().requires_grad_()
        F.cross_entropy(model(x_adv), y).backward()
        assert x_adv.grad is not None
        x_adv = x_adv.detach() + step_size * torch.sign(x_adv.grad)
        x_adv = torch.minimum(torch.maximum(x_adv, x - epsilon), x + epsilon)
        x_adv = x_adv.clamp(low, high)
    return x_adv.detach()
