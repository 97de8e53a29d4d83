"""Adversarial training in plain PyTorch, as the paper writes the algorithm: the baseline of the benchmarks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def plain_pgd(
    model: nn.Module, x: Tensor, y: Tensor, *, epsilon: float, step_size: float, num_steps: int, noise: Tensor | None
) -> Tensor:
    """Returns adversarial images in an L-infinity ball by `.backward()`, which also computes all weights' gradients.

    The model's mode is not changed. `noise` in [0, 1) sets a random start; None: start at `x`.
    """
    start = x if noise is None else x + epsilon * (2 * noise - 1)
    x_adv = start.clamp(0, 1)
    for _ in range(num_steps):
        x_adv = x_adv.detach().requires_grad_()
        F.cross_entropy(model(x_adv), y).backward()
        assert x_adv.grad is not None
        x_adv = x_adv.detach() + step_size * x_adv.grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - epsilon), x + epsilon).clamp(0, 1)
    return x_adv.detach()
