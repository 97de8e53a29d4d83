"""Simulates learning-rate rules on validation sets of several sizes, where the true accuracy is known.

    python benchmarks/schedules.py               # 300 runs a cell, a quarter of an hour on one core
    python benchmarks/schedules.py --runs 20     # a first impression

A run is gradient descent on a noisy quadratic: 30 directions of curvatures over two orders of magnitude, gradient noise
that leaves a floor in proportion to the learning rate, and robust overfitting; all drawn anew for each run, the initial
learning rate with them, from half of a good one to six times as much. The true robust accuracy is top * exp(-excess).
A validation image withstands the attack when its difficulty, fixed for the run, and some luck of the epoch are below
what the accuracy stands for. Rules see outcomes, never the truth.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout has no package "benchmarks"

import torch
from torch import Tensor

from benchmarks.timing import table, write
from distributed_autolora.core.paired import PairedComparison, exceeds
from distributed_autolora.core.schedules import Decision, RobustAccuracyHalving, StepDecay

Rule = Callable[[Tensor], Decision]
_DIRECTIONS = 30


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What to simulate."""

    runs: int = 300
    """Runs of each rule on each validation size and length; the same worlds for every rule."""
    images: tuple[int, ...] = (50, 250, 2500)
    """Validation images."""
    epochs: tuple[int, ...] = (20, 60)
    """Lengths of a run."""
    output: Path = Path("schedules.json")
    """File to write the numbers to."""


class World:
    """A training run whose true robust accuracy is known; `lr` is relative to the initial learning rate.

    Attributes:
        initial_rate: the initial learning rate over a good one.
    """

    def __init__(self, seed: int, images: int) -> None:
        nature, self.chance, self.luck = (np.random.default_rng([seed, stream]) for stream in range(3))
        self.initial_rate = 10 ** nature.uniform(-0.3, 0.8)
        self.decay = self.initial_rate * math.exp(nature.normal(0, 0.4)) * np.geomspace(0.03, 2, _DIRECTIONS)
        self.floor = self.initial_rate * 0.08 * math.exp(nature.normal(0, 0.5)) / _DIRECTIONS
        self.overfitting_an_epoch = nature.uniform(0, 0.004) * 10 ** nature.uniform(-0.3, 0.7)
        self.top = nature.uniform(0.5, 0.9)
        self.distance = nature.normal(0, math.sqrt(1.2 / _DIRECTIONS), _DIRECTIONS)
        self.overfitting = 0.0
        self.difficulty = nature.normal(size=images)

    def epoch(self, lr: float) -> None:
        kept = np.exp(-self.decay * lr)
        noise = np.sqrt(self.floor * lr * (1 - kept**2))
        self.distance = self.distance * kept + noise * self.chance.normal(size=_DIRECTIONS)
        self.overfitting += self.overfitting_an_epoch * math.sqrt(lr)

    @property
    def accuracy(self) -> float:
        """The true robust accuracy."""
        return self.top * math.exp(-float(self.distance @ self.distance) - self.overfitting)

    def outcomes(self, luck: float = 0.35) -> Tensor:
        threshold = norm.ppf(self.accuracy) * math.sqrt(1 + luck**2)
        return torch.from_numpy(self.difficulty + luck * self.luck.normal(size=len(self.difficulty)) < threshold)

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

    def add(self, outcomes: Sequence[bool] | Tensor) -> bool:
        before = self.best
        super().add(outcomes)
        self.kept = self.best
        return self.best is not before


class WholeWindows(PairedComparison):
    """Rule "paired", but a window is compared with the window before."""

    def is_decision(self) -> bool:
        return len(self.outcomes) >= 2 * self.interval and super().is_decision()

    def has_risen(self) -> bool:
        size = self.interval
        now, before = self.outcomes[-size:], self.outcomes[-2 * size : -size]
        return exceeds(torch.stack(now).sum(0), torch.stack(before).sum(0))


class AnyRise(PairedComparison):
    """Rule "paired", but any rise will do."""

    def has_risen(self) -> bool:
        half = self.interval // 2
        later, earlier = self.outcomes[-half:], self.outcomes[-2 * half : -half]
        return sum(int(one.sum()) for one in later) > sum(int(one.sum()) for one in earlier)


class NothingRestored:
    """The released rule without its restores; it keeps the best epoch, or the newest that is as good as the best."""

    def __init__(self, *, newest: bool) -> None:
        self.schedule, self.paired, self.newest = RobustAccuracyHalving(1.0, min_lr=1e-3), PairedComparison(4), newest

    def __call__(self, outcomes: Tensor) -> Decision:
        decision = self.schedule.step(float(outcomes.double().mean()))
        is_kept = self.paired.add(outcomes)
        return replace(decision, improved=is_kept if self.newest else decision.improved, restore_best=False)


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
    "released, nothing restored": lambda epochs: NothingRestored(newest=False),
    "released, nothing restored, newest kept": lambda epochs: NothingRestored(newest=True),
    "paired": automatic("paired"),
    "paired, but the best epoch is kept": automatic("paired", BestIsKept),
    "paired, but against the window before": automatic("paired", WholeWindows),
    "paired, but any rise will do": automatic("paired", AnyRise),
    "halve every four epochs": lambda epochs: Fixed(epochs, lambda t, _: 0.5 ** ((t - 1) // 4)),
    "step decay": step_decay,
    "cosine": lambda epochs: Fixed(epochs, lambda t, total: (1 + math.cos(math.pi * t / total)) / 2),
    "constant": lambda epochs: Fixed(epochs, lambda t, total: 1.0),
}
ORACLE = "oracle: released, sees the true accuracy"


@dataclass
class Run:
    """What became of one run."""

    accuracy: float
    initial_rate: float
    halvings: int = 0
    first_halving: int | None = None
    restores: int = 0
    restores_to_worse: int = 0


def run(seed: int, images: int, epochs: int, rule: Rule, observe: Callable[[World], Tensor]) -> Run:
    """Plays one run to its end; the deployed state is the one that the rule kept."""
    world, lr = World(seed, images), 1.0
    kept = (world.state(), world.accuracy)
    result = Run(0.0, world.initial_rate)
    for epoch in range(1, epochs + 1):
        world.epoch(lr)
        present = world.accuracy
        decision = rule(observe(world))
        kept = (world.state(), present) if decision.improved else kept
        if decision.halved:
            result = replace(result, halvings=result.halvings + 1, first_halving=result.first_halving or epoch)
        if decision.restore_best:
            worse = int(kept[1] < present)
            result = replace(result, restores=result.restores + 1, restores_to_worse=result.restores_to_worse + worse)
            world.load(kept[0])
        lr = decision.lr
        if decision.stop:
            break
    return replace(result, accuracy=kept[1])


def summary(runs: list[Run], oracle: list[Run]) -> dict[str, float | None]:
    """Returns what the table shows: true accuracies in points of a hundred, and how often the rate moved."""
    lost = [100 * (best.accuracy - one.accuracy) for one, best in zip(runs, oracle, strict=True)]
    first = [one.first_halving for one in runs if one.first_halving is not None]

    def where(low: float, high: float) -> float | None:
        found = [points for points, one in zip(lost, runs, strict=True) if low <= one.initial_rate < high]
        return statistics.mean(found) if found else None

    return {
        "below_oracle": statistics.mean(lost),
        "standard_error": statistics.stdev(lost) / math.sqrt(len(lost)),
        "below_oracle_rate_too_low": where(0.0, 1.0),
        "below_oracle_rate_about_right": where(1.0, 2.5),
        "below_oracle_rate_too_high": where(2.5, math.inf),
        "worst_tenth_below_oracle": sorted(lost)[int(0.9 * len(lost))],
        "halvings": statistics.mean(one.halvings for one in runs),
        "first_halving": statistics.median(first) if first else None,
        "restores": statistics.mean(one.restores for one in runs),
        "restores_to_worse": statistics.mean(one.restores_to_worse for one in runs),
    }


def cell(images: int, epochs: int, runs: int) -> dict[str, dict[str, float | None]]:
    """Returns the summary of every rule on one validation size and length."""

    def truth(world: World) -> Tensor:
        return torch.tensor([world.accuracy], dtype=torch.float64)

    seeds = range(runs)
    oracle = [run(seed, images, epochs, automatic("released")(epochs), truth) for seed in seeds]
    found = {
        name: summary([run(seed, images, epochs, make(epochs), World.outcomes) for seed in seeds], oracle)
        for name, make in RULES.items()
    }
    return {**found, ORACLE: summary(oracle, oracle)}


def show(images: int, epochs: int, rules: dict[str, dict[str, float | None]]) -> None:
    """Prints the table of one cell."""
    print(f"\n{epochs} epochs, {images} validation images; points below the oracle, also by the initial rate")
    rows = [
        (name, *(_number(values[key], digits) for key, digits in _COLUMNS.values())) for name, values in rules.items()
    ]
    print(table(("rule", *_COLUMNS), rows), flush=True)


_COLUMNS = {
    "below": ("below_oracle", 2),
    "+-": ("standard_error", 2),
    "too low": ("below_oracle_rate_too_low", 1),
    "right": ("below_oracle_rate_about_right", 1),
    "too high": ("below_oracle_rate_too_high", 1),
    "worst tenth": ("worst_tenth_below_oracle", 1),
    "halvings": ("halvings", 1),
    "first": ("first_halving", 0),
    "restores": ("restores", 2),
    "to worse": ("restores_to_worse", 2),
}


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


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
