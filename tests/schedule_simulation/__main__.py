"""Simulates learning-rate rules on validation sets of several sizes, where the true accuracy is known.

    python -m tests.schedule_simulation             # 300 runs a cell, a quarter of an hour on one core
    python -m tests.schedule_simulation --runs 20   # a first impression

worlds.py defines a run and its validation images. Rules see outcomes, never the true accuracy.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from benchmarks.timing import BenchmarkFlags, run_benchmark, table
from distributed_autolora.core.paired_comparison import PairedComparison, exceeds
from distributed_autolora.core.schedules import Decision, RobustAccuracyHalving, StepDecay
from tests.schedule_simulation.worlds import Seen, World


@dataclass(frozen=True, kw_only=True)
class Flags(BenchmarkFlags):
    """What to simulate."""

    runs: int = 300
    """Runs of each rule on each validation size and length; the same worlds for every rule."""
    images: tuple[int, ...] = (50, 250, 2500)
    """Validation images."""
    epochs: tuple[int, ...] = (20, 60)
    """Lengths of a run."""
    hiding: tuple[float, ...] = (0.0, 0.15)
    """Shares of the epochs that end in a state which hides its gradients from the attack."""


Rule = Callable[[Seen], Decision]


class Fixed:
    """A control whose rate depends on the epoch alone: after epoch t of T, `rate(t, T)`."""

    def __init__(self, epochs: int, rate: Callable[[int, int], float]) -> None:
        self.epochs, self.rate, self.epoch, self.best, self.lr = epochs, rate, 0, -1.0, 1.0

    def __call__(self, seen: Seen) -> Decision:
        self.epoch += 1
        improved, self.best = seen.accuracy > self.best, max(self.best, seen.accuracy)
        before, self.lr = self.lr, self.rate(self.epoch, self.epochs)
        return Decision(self.lr, improved, halved=self.lr == before / 2)


class WholeWindows(PairedComparison):
    """Rule "paired", but a window is compared with the window before."""

    def is_decision(self) -> bool:
        return len(self.outcomes) >= 2 * self.interval and super().is_decision()

    def has_risen(self) -> bool:
        size = self.interval
        now, before = self.outcomes[-size:], self.outcomes[-2 * size : -size]
        return exceeds(torch.stack(now).sum(0), torch.stack(before).sum(0))


class AnyRise(PairedComparison):
    """Rule "paired", but any rise counts, however small."""

    def has_risen(self) -> bool:
        half = self.interval // 2
        later, earlier = self.outcomes[-half:], self.outcomes[-2 * half : -half]
        return sum(int(one.sum()) for one in later) > sum(int(one.sum()) for one in earlier)


class NothingRestored:
    """The authors' rule without its restores; it keeps the best epoch, or the newest that is as good as the best."""

    def __init__(self, *, newest: bool) -> None:
        self.schedule, self.paired, self.newest = RobustAccuracyHalving(1.0, min_lr=1e-3), PairedComparison(4), newest

    def __call__(self, seen: Seen) -> Decision:
        decision = self.schedule.step(seen.accuracy)
        is_kept = self.paired.add(seen.outcomes)
        return replace(decision, improved=is_kept if self.newest else decision.improved, restore_best=False)


def automatic(
    rule: str, comparison: type[PairedComparison] | None = None, *, sees_checks: bool = True
) -> Callable[[int], Rule]:
    def make(epochs: int) -> Rule:
        schedule = RobustAccuracyHalving(1.0, rule=rule, min_lr=1e-3)
        if comparison is not None:
            schedule._paired = comparison(schedule.interval)
        return lambda seen: schedule.step(seen.accuracy, seen.outcomes, seen.check if sees_checks else None)

    return make


def step_decay(epochs: int) -> Rule:
    schedule = StepDecay(1.0, epochs)
    return lambda seen: schedule.step(seen.accuracy)


RULES: dict[str, Callable[[int], Rule]] = {
    "released": automatic("released"),
    "apgd": automatic("apgd"),
    "released, nothing restored": lambda epochs: NothingRestored(newest=False),
    "released, nothing restored, newest kept": lambda epochs: NothingRestored(newest=True),
    "paired": automatic("paired"),
    "paired, without checks": automatic("paired", sees_checks=False),
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
    """True accuracy of the deployed state of one run, and how its learning rate moved."""

    accuracy: float
    initial_rate: float
    halvings: int = 0
    first_halving: int | None = None
    restores: int = 0
    restores_to_worse: int = 0


def run(world: World, epochs: int, rule: Rule, observe: Callable[[World, int, int], Seen]) -> Run:
    """Simulates one run to its end; the deployed state is the one that the rule kept."""
    lr = 1.0
    kept = (world.state, world.accuracy)
    result = Run(0.0, world.initial_rate)
    for epoch in range(1, epochs + 1):
        world.epoch(lr)
        present = world.accuracy
        decision = rule(observe(world, epoch, epochs))
        kept = (world.state, present) if decision.improved else kept
        if decision.halved:
            result.halvings, result.first_halving = result.halvings + 1, result.first_halving or epoch
        if decision.restore_best:
            result.restores += 1
            result.restores_to_worse += kept[1] < present
            world.state = kept[0]
        lr = decision.lr
        if decision.stop:
            break
    return replace(result, accuracy=kept[1])


def summary(runs: list[Run], oracle: list[Run]) -> dict[str, float | None]:
    """Returns the points below the oracle, in all and by initial rate, and how often the rate moved."""
    lost = [100 * (best.accuracy - one.accuracy) for one, best in zip(runs, oracle, strict=True)]
    first = [one.first_halving for one in runs if one.first_halving is not None]

    def where(low: float, high: float) -> float | None:
        found = [points for points, one in zip(lost, runs, strict=True) if low <= one.initial_rate < high]
        return statistics.mean(found) if found else None

    return {
        "below": statistics.mean(lost),
        "error": statistics.stdev(lost) / math.sqrt(len(lost)),
        "rate_too_low": where(0.0, 1.0),
        "about_right": where(1.0, 2.5),
        "too_high": where(2.5, math.inf),
        "worst_tenth": sorted(lost)[int(0.9 * len(lost))],
        "halvings": statistics.mean(one.halvings for one in runs),
        "first_halving": statistics.median(first) if first else None,
        "restores": statistics.mean(one.restores for one in runs),
        "restores_to_worse": statistics.mean(one.restores_to_worse for one in runs),
    }


def cell(images: int, epochs: int, hiding: float, runs: int) -> dict[str, dict[str, float | None]]:
    """Returns the summary of every rule on one validation size, length and share of hidden gradients."""

    def simulated(make: Callable[[int], Rule], observe: Callable[[World, int, int], Seen]) -> list[Run]:
        return [run(World(seed, images, hiding), epochs, make(epochs), observe) for seed in range(runs)]

    oracle = simulated(automatic("released"), World.truth)
    found = {name: summary(simulated(make, World.seen), oracle) for name, make in RULES.items()}
    return {**found, ORACLE: summary(oracle, oracle)}


def measure(flags: Flags) -> dict[str, Any]:
    """Returns everything that is written; prints each table as soon as it is there."""
    cells = []
    for hiding, epochs, images in product(flags.hiding, flags.epochs, flags.images):
        rules = cell(images, epochs, hiding, flags.runs)
        print(f"\n{epochs} epochs, {images} validation images, {hiding:.0%} of the epochs hide their gradients")
        print(f"points below the oracle, also by initial rate\n{table('rule', rules)}", flush=True)
        cells.append({"images": images, "epochs": epochs, "hiding": hiding, "rules": rules})
    return {"runs": flags.runs, "cells": cells}


if __name__ == "__main__":
    run_benchmark(Flags, __doc__, measure)
