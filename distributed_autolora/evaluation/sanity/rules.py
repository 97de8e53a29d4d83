"""What every sanity check shares: its result, what is under test, and how large a difference must be to count."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.evaluation.trajectories import Trajectory, in_batches, start_noise, trajectory

Status = Literal["PASS", "WARN", "FAIL"]
_TURNING_SHARE = 0.01


@dataclass(frozen=True)
class SanityCheck:
    """The result of one check."""

    name: str
    status: Status
    detail: str
    """One line for people."""
    figures: dict[str, Any] = field(default_factory=dict)
    """The numbers behind it: ints, floats, and lists and dicts of them."""


@dataclass(frozen=True)
class Subject:
    """What is under test: a model in eval mode, and images and labels on its device."""

    model: nn.Module
    x: Tensor
    y: Tensor
    threat_model: ThreatModel
    seed: int
    step_size: float
    batch_size: int

    def __len__(self) -> int:
        return len(self.x)

    def logits(self, x: Tensor | None = None) -> Tensor:
        """Returns the [n, classes] logits of the images or of others."""
        return in_batches(self.model, self.batch_size, self.x if x is None else x)

    def right(self, x: Tensor | None = None) -> Tensor:
        """Tells for each row whether the model gets it right, [n] bool."""
        return self.logits(x).argmax(1) == self.y

    def walk(
        self,
        num_steps: int,
        start: int | None = None,
        threat_model: ThreatModel | None = None,
        step_size: float | None = None,
    ) -> Trajectory:
        """Returns the way of PGD from the clean images, or from a numbered random start."""
        noise = None if start is None else start_noise(self.x, self.seed, start)
        ways = [
            trajectory(
                self.model,
                self.x[rows],
                self.y[rows],
                threat_model=threat_model or self.threat_model,
                num_steps=num_steps,
                step_size=self.step_size if step_size is None else step_size,
                noise=None if noise is None else noise[rows],
            )
            for rows in torch.arange(len(self), device=self.x.device).split(self.batch_size)
        ]
        return Trajectory(torch.cat([way.correct for way in ways]), torch.cat([way.loss for way in ways]))


def slack(total: int) -> int:
    """Returns by how many of `total` images two attacks on the same images may differ by chance.

    Two runs that are equally strong disagree on few images, each as likely in either direction. With 1 % of
    them turning, the difference of the counts has mean 0 and standard deviation sqrt(0.01 total); two of these
    are allowed, and one image at least: 2 of 100, 7 of 1,000, 20 of 10,000 (0.2 %, AutoAttack's own
    limit for Square there).
    """
    return max(1, math.ceil(2 * math.sqrt(_TURNING_SHARE * total)))


def judged(excess: float, total: int) -> Status:
    """Returns PASS for an excess of images within `slack`, WARN within twice that (four deviations), else FAIL."""
    if excess <= slack(total):
        return "PASS"
    return "WARN" if excess <= 2 * slack(total) else "FAIL"


def graver(*statuses: Status) -> Status:
    """Returns the gravest of the statuses."""
    order: tuple[Status, ...] = ("PASS", "WARN", "FAIL")
    return max(statuses, key=order.index)


def percent(count: float, total: int) -> str:
    """Returns "77.5 %"."""
    return f"{100 * count / total:.1f} %"
