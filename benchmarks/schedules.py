"""Simulates learning-rate rules on validation sets of several sizes, where the true accuracy is known.

    python benchmarks/schedules.py               # 400 runs a cell, a quarter of an hour on one core
    python benchmarks/schedules.py --runs 20     # a first impression

A run is gradient descent on a noisy quadratic: 30 directions of curvatures over two orders of magnitude, gradient noise
that leaves a floor in proportion to the learning rate, and slow robust overfitting; all drawn anew for each run. The
true robust accuracy is top * exp(-excess). A validation image withstands the attack when its difficulty, fixed for the
run, and some luck of the epoch are below what the accuracy stands for. Rules see outcomes, never the truth.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout has no package "benchmarks"

import torch
from torch import Tensor

from benchmarks.timing import table, write
from distributed_autolora.core.paired import PairedComparison
from distributed_autolora.core.schedules import Decision, RobustAccuracyHalving, StepDecay

Rule = Callable[[Tensor], Decision]
_DIRECTIONS = 30


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What to simulate."""

    runs: int = 400
    """Runs of each rule on each validation size and length; the same worlds for every rule."""
    images: tuple[int, ...] = (50, 125, 250, 625, 2500)
    """Validation images."""
    epochs: tuple[int, ...] = (20, 60)
    """Lengths of a run."""
    output: Path = Path("schedules.json")
    """File to write the numbers to."""


class World:
    """A training run whose true robust accuracy is known; `lr` is relative to the initial learning rate."""

    def __init__(self, seed: int, images: int) -> None:
        self.chance = np.random.default_rng(seed)
        self.decay = math.exp(self.chance.normal(0, 0.4)) * np.geomspace(0.03, 2, _DIRECTIONS)
        self.floor = 0.08 * math.exp(self.chance.normal(0, 0.5)) / _DIRECTIONS
        self.overfitting_an_epoch = self.chance.uniform(0, 0.004)
        self.top = self.chance.uniform(0.5, 0.9)
        self.distance = self.chance.normal(0, math.sqrt(1.2 / _DIRECTIONS), _DIRECTIONS)
        self.overfitting = 0.0
        self.difficulty = self.chance.normal(size=images)

    def epoch(self, lr: float) -> None:
        kept = np.exp(-self.decay * lr)
        noise = np.sqrt(self.floor * lr * (1 - kept**2))
        self.distance = self.distance * kept + noise * self.chance.normal(size=_DIRECTIONS)
        self.overfitting += self.overfitting_an_epoch * math.sqrt(lr)

    @property
    def share(self) -> float:
        """The true robust accuracy as a share of what this world could reach."""
        return math.exp(-float(self.distance @ self.distance) - self.overfitting)

    def outcomes(self, luck: float = 0.35) -> Tensor:
        threshold = norm.ppf(self.top * self.share) * math.sqrt(1 + luck**2)
        return torch.from_numpy(self.difficulty + luck * self.chance.normal(size=len(self.difficulty)) < threshold)

    def state(self) -> tuple[np.ndarray, float]:
        return self.distance.copy(), self.overfitting

    def load(self, state: tuple[np.ndarray, float]) -> None:
        self.distance, self.overfitting = state[0].copy(), state[1]


class Fixed:
    """A control whose rate depends on the epoch alone: after epoch t of T, `rate(t, T)`."""

    def __init__(self, epochs: int, rate: Callable[[int, int], float]) -> None:
        self.epochs, self.rate, self.epoch, self.best, self.lr = epochs, rate, 0, -1.0, 1.0

    def __call__(self, outcomes: Tensor) -> Decision:
        self.epoch += 1
        accuracy = float(outcomes.double().mean())
        improved, self.best = accuracy > self.best, max(self.best, accuracy)
        before, self.lr = self.lr, self.rate(self.epoch, self.epochs)
        return Decision(self.lr, improved, halved=self.lr == before / 2)


class BestIsKept(PairedComparison):
    """Rule "paired" but for what is kept: the epoch of the highest accuracy, as the released code keeps it."""

    def add(self, outcomes: object) -> bool:
        before = self._best
        super().add(outcomes)  # type: ignore[arg-type]
        self._kept = self._best
        return self._best is not before


class RisesCredibly(PairedComparison):
    """Rule "paired" that halves unless the window's mean rose by a standard error."""

    def has_risen(self) -> bool:
        size = self.interval
        now, before = (torch.stack(part).double().mean(0) for part in self._windows(size))
        difference = now - before
        return float(difference.mean()) > float(difference.std()) / math.sqrt(len(difference))

    def _windows(self, size: int) -> tuple[list[Tensor], list[Tensor]]:
        return self.outcomes[-size:], self.outcomes[-2 * size : -size]


def automatic(rule: str, comparison: type[PairedComparison] | None = None) -> Callable[[int], Rule]:
    def make(epochs: int) -> Rule:
        schedule = RobustAccuracyHalving(1.0, rule=rule, min_lr=1e-3)
        if comparison is not None:
            schedule._paired = comparison(schedule.interval)
        return lambda outcomes: schedule.step(float(outcomes.double().mean()), outcomes)

    return make


def step_decay(epochs: int) -> Rule:
    schedule = StepDecay(1.0, epochs)
    return lambda outcomes: schedule.step(float(outcomes.double().mean()))


RULES: dict[str, Callable[[int], Rule]] = {
    "released": automatic("released"),
    "apgd": automatic("apgd"),
    "paired": automatic("paired"),
    "paired, but the best epoch is kept": automatic("paired", BestIsKept),
    "paired, but one standard error to rise": automatic("paired", RisesCredibly),
    "halve every four epochs": lambda epochs: Fixed(epochs, lambda t, _: 0.5 ** ((t - 1) // 4)),
    "step decay": step_decay,
    "cosine": lambda epochs: Fixed(epochs, lambda t, total: (1 + math.cos(math.pi * t / total)) / 2),
    "constant": lambda epochs: Fixed(epochs, lambda t, total: 1.0),
}
ORACLE = "oracle: released, sees the true accuracy"


@dataclass
class Run:
    """What became of one run."""

    share: float
    halvings: int = 0
    first_halving: int | None = None
    restores: int = 0
    restores_to_worse: int = 0


def run(seed: int, images: int, epochs: int, rule: Rule, observe: Callable[[World], Tensor]) -> Run:
    """Plays one run to its end; the deployed state is the one that the rule kept."""
    world, lr, kept = World(seed, images), 1.0, (None, 0.0)
    result = Run(0.0)
    for epoch in range(1, epochs + 1):
        world.epoch(lr)
        present = world.share
        decision = rule(observe(world))
        kept = (world.state(), present) if decision.improved else kept
        if decision.halved:
            result = replace(result, halvings=result.halvings + 1, first_halving=result.first_halving or epoch)
        if decision.restore_best and kept[0] is not None:
            worse = int(kept[1] < present)
            result = replace(result, restores=result.restores + 1, restores_to_worse=result.restores_to_worse + worse)
            world.load(kept[0])
        lr = decision.lr
        if decision.stop:
            break
    return replace(result, share=kept[1])


def summary(runs: list[Run], oracle: list[Run]) -> dict[str, float | None]:
    """Returns what the table shows: accuracy below the oracle's in points of a hundred, and its standard error."""
    lost = [100 * (best.share - one.share) for one, best in zip(runs, oracle, strict=True)]
    first = [one.first_halving for one in runs if one.first_halving is not None]
    return {
        "below_oracle": statistics.mean(lost),
        "standard_error": statistics.stdev(lost) / math.sqrt(len(lost)),
        "worst_tenth_below_oracle": sorted(lost)[int(0.9 * len(lost))],
        "halvings": statistics.mean(one.halvings for one in runs),
        "first_halving": statistics.median(first) if first else None,
        "restores": statistics.mean(one.restores for one in runs),
        "restores_to_worse": statistics.mean(one.restores_to_worse for one in runs),
    }


def cell(images: int, epochs: int, runs: int) -> dict[str, dict[str, float | None]]:
    """Returns the summary of every rule on one validation size and length."""

    def truth(world: World) -> Tensor:
        return torch.tensor([world.share], dtype=torch.float64)

    seeds = range(runs)
    oracle = [run(seed, images, epochs, automatic("released")(epochs), truth) for seed in seeds]
    found = {
        name: summary([run(seed, images, epochs, make(epochs), World.outcomes) for seed in seeds], oracle)
        for name, make in RULES.items()
    }
    return {**found, ORACLE: summary(oracle, oracle)}


def show(images: int, epochs: int, rules: dict[str, dict[str, float | None]]) -> None:
    """Prints the table of one cell."""
    print(f"\n{epochs} epochs, {images} validation images")
    rows = [
        (
            name,
            f"{values['below_oracle']:.2f} +- {values['standard_error']:.2f}",
            f"{values['worst_tenth_below_oracle']:.1f}",
            f"{values['halvings']:.1f}",
            "-" if values["first_halving"] is None else f"{values['first_halving']:.0f}",
            f"{values['restores']:.2f}",
            f"{values['restores_to_worse']:.2f}",
        )
        for name, values in rules.items()
    ]
    print(table(("rule", "% below", "worst tenth", "halvings", "first", "restores", "to worse"), rows), flush=True)


def main() -> None:
    """Simulates, prints and writes."""
    flags = tyro.cli(Flags, description=__doc__)
    torch.set_num_threads(1)
    cells = []
    for epochs in flags.epochs:
        for images in flags.images:
            rules = cell(images, epochs, flags.runs)
            show(images, epochs, rules)
            cells.append({"images": images, "epochs": epochs, "rules": rules})
    write({"runs": flags.runs, "cells": cells}, flags.output)


if __name__ == "__main__":
    main()
