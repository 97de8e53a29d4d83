"""Adversarial training in plain PyTorch, as the paper writes the algorithm: the baseline of the benchmarks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def plain_pgd(
    model: nn.Module, x: Tensor, y: Tensor, *, epsilon: float, step_size: float, num_steps: int, noise: Tensor | None
) -> Tensor:
    """Returns adversarial images by `.backward()`, which also computes the gradients of all weights.

    Args:
        model: logits of images; its mode is not changed.
        x: [n, C, H, W] images in [0, 1].
        y: [n] labels.
        epsilon: radius of the L-infinity ball.
        step_size: length of a step.
        num_steps: gradient steps.
        noise: [n, C, H, W] values in [0, 1) for a random start; None: start at `x`.
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
