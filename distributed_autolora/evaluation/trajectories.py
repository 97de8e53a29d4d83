"""Helpers of evaluations: margins, random starts, recorded logits, and whole trajectories of PGD."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distributed_autolora.core.attacks import pgd
from distributed_autolora.core.keyed_random import keyed_uniform
from distributed_autolora.core.threat_model import ThreatModel


@dataclass(frozen=True)
class Trajectory:
    """Whether each image is correct after 0, 1, ..., num_steps steps of PGD, and its loss; both [n, num_steps + 1]."""

    correct: Tensor
    loss: Tensor


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """Returns for [n, classes] logits that of the label in `y` [n] minus the largest other one, [n]."""
    own = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], -torch.inf)
    return own[:, 0] - others.amax(1)


def start_noise(x: Tensor, seed: int, start: int) -> Tensor:
    """Returns values in [0, 1) shaped like `x` for a numbered random start: the same on every device."""
    return keyed_uniform(seed, "attack", start, torch.arange(len(x), device=x.device), tuple(x.shape[1:]))


@contextmanager
def recorded_logits(model: nn.Module) -> Iterator[list[Tensor]]:
    """Yields a list that collects the logits of every forward of `model` in the block."""
    seen: list[Tensor] = []
    hook = model.register_forward_hook(lambda _model, _inputs, logits: seen.append(logits.detach()))
    try:
        yield seen
    finally:
        hook.remove()


def pgd_from(noise: Tensor | None, model: nn.Module, x: Tensor, y: Tensor, **search: Any) -> Tensor:
    """Returns the result of `core.attacks.pgd` from the random start of `noise`, or without it from the clean image."""
    return pgd(model, x, y, random_start=noise is not None, noise=noise, **search)


def trajectory(
    noise: Tensor | None, model: nn.Module, x: Tensor, y: Tensor, *, ball: ThreatModel, num_steps: int, step_size: float
) -> Trajectory:
    """Returns the outcome of every iterate of `pgd_from`, n at least 1."""
    with recorded_logits(model) as logits, torch.no_grad():
        model(pgd_from(noise, model, x, y, threat_model=ball, num_steps=num_steps, step_size=step_size))
    correct = [step.argmax(1) == y for step in logits]
    losses = [F.cross_entropy(step, y, reduction="none") for step in logits]
    return Trajectory(torch.stack(correct, 1), torch.stack(losses, 1))


def in_batches(function: Callable[..., Tensor], batch_size: int, *tensors: Tensor) -> Tensor:
    """Applies a function of rows to `batch_size` rows at a time and joins what it returns along the rows."""
    return torch.cat([function(*batch) for batch in zip(*(t.split(batch_size) for t in tensors), strict=True)])
