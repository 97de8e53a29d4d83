"""Common parts of the sanity checks: what is checked, and how large a difference must be to count."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.evaluation.attacks import Budget
from distributed_autolora.evaluation.autoattack import run_parts
from distributed_autolora.evaluation.trajectories import Trajectory, in_batches, start_noise, trajectory
from distributed_autolora.records import Status

_ORDER: tuple[Status, ...] = ("PASS", "WARN", "FAIL")
_TURNING_SHARE = 0.01


@dataclass(frozen=True)
class Subject:
    """What is checked: a model in eval mode, and images and labels on its device."""

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

    def correct(self, x: Tensor | None = None) -> Tensor:
        """Returns for each image whether it, or its counterpart in `x`, is classified correctly, [n] bool."""
        return self.logits(x).argmax(1) == self.y

    def trajectory(
        self,
        num_steps: int,
        start: int | None = None,
        threat_model: ThreatModel | None = None,
        step_size: float | None = None,
    ) -> Trajectory:
        """Returns the trajectory of PGD from the clean images, or from a numbered random start."""
        noise = None if start is None else start_noise(self.x, self.seed, start)
        parts = [
            trajectory(
                None if noise is None else noise[rows],
                self.model,
                self.x[rows],
                self.y[rows],
                ball=threat_model or self.threat_model,
                num_steps=num_steps,
                step_size=self.step_size if step_size is None else step_size,
            )
            for rows in torch.arange(len(self), device=self.x.device).split(self.batch_size)
        ]
        return Trajectory(torch.cat([part.correct for part in parts]), torch.cat([part.loss for part in parts]))

    def robust_to(self, parts: tuple[str, ...], budget: Budget, rows: Tensor) -> Tensor:
        """Returns for each of `rows` whether its image is robust to parts of AutoAttack, [len(rows)] bool."""
        if not len(rows):
            return rows.bool()

        def robust(x: Tensor, y: Tensor) -> Tensor:
            ball, seed = self.threat_model, self.seed
            outcome = run_parts(self.model, x, y, threat_model=ball, parts=parts, seed=seed, budget=budget)
            return outcome.broken_by == len(parts)

        return in_batches(robust, self.batch_size, self.x[rows], self.y[rows])


def slack(total: int) -> int:
    """Returns by how many of `total` images two attacks on the same images may differ by chance.

    With 1 % of the images turning, in either direction, the difference of the counts has mean 0 and standard deviation
    sqrt(0.01 total). Two of these are allowed, and one image at least: 2 of 100, 7 of 1,000, 20 of 10,000.
    """
    return max(1, math.ceil(2 * math.sqrt(_TURNING_SHARE * total)))


def status_of(excess: float, total: int) -> Status:
    """Returns PASS for an excess of images within `slack`, WARN within twice that (four deviations), else FAIL."""
    if excess <= slack(total):
        return "PASS"
    return "WARN" if excess <= 2 * slack(total) else "FAIL"


def worst(*statuses: Status) -> Status:
    """Returns FAIL if there is one, else WARN, else PASS."""
    return max(statuses, key=_ORDER.index)


def percent(count: float, total: int) -> str:
    """Returns "77.5 %"."""
    return f"{100 * count / total:.1f} %"
