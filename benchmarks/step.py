"""Measures a whole training step of each method against a plain one written as the paper's algorithm reads.

    python benchmarks/step.py

The plain step is float32, contiguous, with a PGD by `.backward()`. Ours is that of a run, in several number formats.
One process, one thread. Also measures the forward pass for the natural-branch accuracy.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout has no package "benchmarks"

from benchmarks.reference import plain_pgd
from benchmarks.timing import BenchmarkFlags, interleaved, ratio, run_benchmark, table
from benchmarks.trained import NATURAL_BRANCH_ACCURACY, TrainingSteps
from distributed_autolora.config import ComputeConfig, ExperimentConfig, MethodConfig, Precision
from distributed_autolora.config.recipes import demo
from distributed_autolora.core.keyed_random import keyed_uniform
from distributed_autolora.core.objectives import AutoLoRa
from distributed_autolora.core.schedules import LossWeights
from distributed_autolora.data.catalog import embedded_backbone, embedded_folder
from distributed_autolora.training.methods.registry import build_objective, fresh_classifier
from distributed_autolora.training.task_data import TaskData

PLAIN = "plain step, float32"
FORMATS: tuple[tuple[Precision, Precision], ...] = (
    ("float32", "float32"),
    ("bfloat16", "float32"),
    ("bfloat16", "bfloat16"),
)
"""Number formats of the attack and of the training step."""


@dataclass(frozen=True, kw_only=True)
class Flags(BenchmarkFlags):
    """What to measure."""

    methods: tuple[str, ...] = ("autolora", "vanilla", "twins")
    """Methods by their registered names."""
    rows: int = 64
    """Images of a batch."""
    rounds: int = 7
    """Times that each variant is timed."""


def measure(flags: Flags) -> dict[str, Any]:
    """Returns everything that is written."""
    methods = {method: measure_method(method, flags.rows, flags.rounds) for method in flags.methods}
    return {"rows": flags.rows, "methods": methods}


def measure_method(method: str, rows: int, rounds: int) -> dict[str, Any]:
    """Returns milliseconds of a step by variant, ours by phase too, and the cost of the natural-branch accuracy."""
    config = replace(demo(), method=MethodConfig(name=method))
    data = TaskData(config, embedded_folder(), torch.device("cpu"))
    batch = data.split.train[:rows]
    x, y = data.plain_batch(batch)
    ours = {_name(*formats): trainer_of(config, data, *formats) for formats in FORMATS}
    variants: dict[str, Callable[[], object]] = {PLAIN: Plain(config, data, batch, x, y).take}
    variants |= {name: partial(steps.take, batch, x, y) for name, steps in ours.items()}
    seconds = interleaved(variants, rounds)
    result: dict[str, Any] = {
        name: {"ms": 1000 * min(taken), "speed_over_plain": 1 / ratio(seconds, name, PLAIN)}
        for name, taken in seconds.items()
    }
    for name, steps in ours.items():
        result[name] |= {f"mean_{phase}_ms": 1000 * s / (rounds + 1) for phase, s in steps.timer.seconds.items()}
    fastest = ours[_name(*FORMATS[-1])]
    share = None
    if isinstance(fastest.trainer.objective, AutoLoRa):
        share = _natural_branch_share(fastest, batch, x, y, rounds)
    return {"variants": result, "natural_branch_share": share}


def trainer_of(config: ExperimentConfig, data: TaskData, attack: Precision, train: Precision) -> TrainingSteps:
    """Returns a trainer as a run has it, in these number formats."""
    compute = ComputeConfig(attack_precision=attack, train_precision=train)
    return TrainingSteps(replace(config, compute=compute), data, str(embedded_backbone()), torch.device("cpu"))


def _name(attack: Precision, train: Precision) -> str:
    return f"attack {attack}, training {train}"


class Plain:
    """The reference: objective, optimiser and noise of one batch."""

    def __init__(self, config: ExperimentConfig, data: TaskData, batch: Tensor, x: Tensor, y: Tensor) -> None:
        self._config, self._x, self._y = config, x, y
        self._backbone = fresh_classifier(config, data.num_classes, str(embedded_backbone()))
        self.objective = build_objective(config, self._backbone)
        if isinstance(self.objective, AutoLoRa):
            self.objective.weights = LossWeights.from_natural_accuracy(NATURAL_BRANCH_ACCURACY)
        own = config.optimization
        parameters = self.objective.parameters()
        self._optimizer = torch.optim.SGD(parameters, own.lr, own.momentum, weight_decay=own.weight_decay)
        self._noise = keyed_uniform(config.seed, "attack", 1, batch, tuple(x.shape[1:]))

    def take(self) -> None:
        """Takes one step: attack in eval mode, both forwards in train mode, one backward, one update."""
        attack, epsilon = self._config.train_attack, self._config.threat_model.epsilon
        size = {"epsilon": epsilon, "step_size": attack.step_size, "num_steps": attack.num_steps}
        self._backbone.eval()
        x_adv = plain_pgd(self._backbone, self._x, self._y, noise=self._noise, **size)  # type: ignore[arg-type]
        self.objective.train()
        self._optimizer.zero_grad()
        self.objective(self._x, x_adv, self._y).total.backward()
        self._optimizer.step()


def _natural_branch_share(steps: TrainingSteps, batch: Tensor, x: Tensor, y: Tensor, rounds: int) -> float:
    """Returns the time of a batch's natural-branch accuracy / that of its training step."""
    trainer = steps.trainer
    assert isinstance(trainer.objective, AutoLoRa)
    natural_logits = trainer.objective.natural_logits

    def forward() -> None:
        trainer.objective.eval()
        with torch.no_grad(), trainer.step.autocast():
            natural_logits(x)
        trainer.objective.train()

    seconds = interleaved({"forward": forward, "step": partial(steps.take, batch, x, y)}, rounds)
    return ratio(seconds, "forward", "step")


def show(result: dict[str, Any]) -> None:
    """Prints a table a method."""
    for method, found in result["methods"].items():
        print(f"\n{method}, batch of {result['rows']}, one thread")
        print(table("one training step", found["variants"]))
        share = found["natural_branch_share"]
        if share is not None:
            print(f"the natural-branch accuracy adds {100 * share:.1f} % to an epoch's steps")


if __name__ == "__main__":
    run_benchmark(Flags, __doc__, measure, show)
