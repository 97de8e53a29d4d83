"""The simulated training runs of this folder, whose true robust accuracy is known.

A run is gradient descent on a noisy quadratic: 30 directions of curvatures over two orders of magnitude, gradient noise
whose floor is proportional to the learning rate, and robust overfitting, all drawn anew for each run. So is the initial
learning rate: half of a good one to six times as much. The true robust accuracy is top * exp(-excess). A validation
image is robust if its difficulty, fixed for the run, plus the luck of the epoch is below a threshold that yields the
accuracy.

Where gradients hide, some epochs end in a state whose accuracy under the attack is up to 6 points better than that of
an honest one, and whose true accuracy is 5 to 30 points worse (docs/log.md has such epochs). The stronger attacks of a
check, every four epochs on a quarter of the images, find nine tenths of that, as measured, and take a point from every
state. Further checks that FOSC asks for are left out.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from distributed_autolora.core.paired_comparison import StrongerCheck

_DIRECTIONS = 30
_LUCK = 0.35
"""Of an epoch, in standard deviations of the difficulty of images."""
_HONEST_GAP = 0.01
"""Accuracy that every state loses under the stronger attack."""
_FOUND = 0.9
"""Of what a state hides, by the stronger attacks."""
_CHECK_EVERY = 4
_CHECKED_SHARE = 0.24
"""Of the validation images, which are a quarter of all: a twentieth of an epoch's compute."""


@dataclass(frozen=True)
class State:
    """What a run can restore."""

    distance: np.ndarray
    overfitting: float
    promise: float = 0.0
    """How far the accuracy under the attack lies above `World.honest_accuracy`."""
    deceit: float = 0.0
    """How far the true accuracy lies below it."""


@dataclass(frozen=True)
class Seen:
    """Outcomes of an epoch's validation under the attack, and of its check if there is one."""

    outcomes: Tensor
    check: StrongerCheck | None = None

    @property
    def accuracy(self) -> float:
        return float(self.outcomes.double().mean())


class World:
    """A training run whose true robust accuracy is known; `initial_rate` is the initial learning rate over a good one.

    `lr` is relative to the initial learning rate.
    """

    def __init__(self, seed: int, images: int, hiding: float) -> None:
        streams = [np.random.default_rng([seed, stream]) for stream in range(4)]
        nature, self.chance, self.luck, self.mood = streams
        self.hiding = hiding
        self.initial_rate = 10 ** nature.uniform(-0.3, 0.8)
        self.decay = self.initial_rate * math.exp(nature.normal(0, 0.4)) * np.geomspace(0.03, 2, _DIRECTIONS)
        self.floor = self.initial_rate * 0.08 * math.exp(nature.normal(0, 0.5)) / _DIRECTIONS
        self.overfitting_an_epoch = nature.uniform(0, 0.004) * 10 ** nature.uniform(-0.3, 0.7)
        self.top = nature.uniform(0.5, 0.9)
        self.state = State(nature.normal(0, math.sqrt(1.2 / _DIRECTIONS), _DIRECTIONS), 0.0)
        self.difficulty = nature.normal(size=images)
        self.is_sampled = torch.from_numpy(nature.permutation(images) < max(1, round(_CHECKED_SHARE * images)))

    def epoch(self, lr: float) -> None:
        kept = np.exp(-self.decay * lr)
        noise = np.sqrt(self.floor * lr * (1 - kept**2))
        distance = self.state.distance * kept + noise * self.chance.normal(size=_DIRECTIONS)
        overfitting = self.state.overfitting + self.overfitting_an_epoch * math.sqrt(lr)
        hides, promise, deceit = self.mood.uniform(), self.mood.uniform(0, 0.06), self.mood.uniform(0.05, 0.3)
        lies = (promise, deceit) if hides < self.hiding else (0.0, 0.0)
        self.state = State(distance, overfitting, *lies)

    @property
    def honest_accuracy(self) -> float:
        """The true robust accuracy where no gradient hides."""
        distance = self.state.distance
        return self.top * math.exp(-float(distance @ distance) - self.state.overfitting)

    @property
    def accuracy(self) -> float:
        """The true robust accuracy."""
        return max(0.0, self.honest_accuracy - self.state.deceit)

    def seen(self, epoch: int, epochs: int) -> Seen:
        """Returns the validation of an epoch; the luck is the same for both attacks."""
        fortune = _LUCK * self.luck.normal(size=len(self.difficulty))
        robust = self._robust(self.honest_accuracy + self.state.promise, fortune)
        if epoch % _CHECK_EVERY and epoch < epochs:
            return Seen(robust)
        robust_to_both = self._robust(self.honest_accuracy - _HONEST_GAP - _FOUND * self.state.deceit, fortune)
        return Seen(robust, StrongerCheck(robust & ~robust_to_both & self.is_sampled, int(self.is_sampled.sum())))

    def truth(self, epoch: int, epochs: int) -> Seen:
        """Returns the true accuracy in place of outcomes, for the oracle."""
        return Seen(torch.tensor([self.accuracy], dtype=torch.float64))

    def _robust(self, accuracy: float, fortune: np.ndarray) -> Tensor:
        threshold = norm.ppf(min(max(accuracy, 1e-3), 0.999)) * math.sqrt(1 + _LUCK**2)
        return torch.from_numpy(self.difficulty + fortune < threshold)
