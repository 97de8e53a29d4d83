"""What evaluations look at: margins, starts, and the whole way of PGD instead of its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distributed_autolora.core.keyed_random import keyed_uniform
from distributed_autolora.core.threat_model import ThreatModel


@dataclass(frozen=True)
class Trajectory:
    """How the images fared after 0, 1, ..., num_steps steps of PGD."""

    correct: Tensor
    """[n, num_steps + 1] bool: classified rightly there."""
    loss: Tensor
    """[n, num_steps + 1] float32: cross-entropy there."""


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """Returns for [n, classes] logits that of the label in `y` [n] minus the largest other one, [n]."""
    own = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], -torch.inf)
    return own[:, 0] - others.amax(1)


def start_noise(x: Tensor, seed: int, start: int) -> Tensor:
    """Returns values in [0, 1) shaped like `x` for a numbered random start: the same on every device."""
    return keyed_uniform(seed, "attack", start, torch.arange(len(x), device=x.device), tuple(x.shape[1:]))


def trajectory(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat_model: ThreatModel,
    num_steps: int,
    step_size: float,
    noise: Tensor | None = None,
) -> Trajectory:
    """Walks PGD and keeps what `core.attacks.pgd` with 0, 1, ..., `num_steps` steps would end with.

    Args:
        model: logits of images, in eval mode.
        x: [n, C, H, W] images.
        y: [n] labels.
        threat_model: where to search.
        num_steps: gradient steps.
        step_size: length of a step, in the units of the images.
        noise: [n, C, H, W] values in [0, 1) for a random start; None: start at the clean image.
    """
    correct, losses = [], []
    x_adv = threat_model.start(x, noise)
    for step in range(num_steps + 1):
        loss, logits, gradient = loss_and_gradient(model, x_adv, y)
        correct.append(logits.argmax(1) == y)
        losses.append(loss)
        if step < num_steps:
            x_adv = threat_model.project(threat_model.ascend(x_adv, gradient, step_size), x)
    return Trajectory(torch.stack(correct, 1), torch.stack(losses, 1))


def loss_and_gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns each row's cross-entropy [n], its logits [n, classes], and its gradient with respect to the image.

    Args:
        model: logits of images.
        x: [n, C, H, W] images.
        y: [n] labels.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(x)
        loss = F.cross_entropy(logits, y, reduction="none")
        gradient = torch.autograd.grad(loss.sum(), x)[0]
    return loss.detach(), logits.detach(), gradient


def in_batches(function: Callable[..., Tensor], batch_size: int, *tensors: Tensor) -> Tensor:
    """Applies a function of rows to `batch_size` rows at a time and joins what it returns along the rows."""
    return torch.cat([function(*batch) for batch in zip(*(t.split(batch_size) for t in tensors), strict=True)])
