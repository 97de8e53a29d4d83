"""Measures a whole training step of each method against a plain one written as the paper's algorithm reads.

    python benchmarks/step.py

The plain step is float32, contiguous, with a PGD by `.backward()`. Ours is the one that runs take, by number formats
of attack and training step. One process, one thread. Also shows what the pass for the natural-branch accuracy costs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout has no package "benchmarks"

from benchmarks.reference import plain_step
from benchmarks.timing import interleaved, ratio, table, write
from distributed_autolora.config import ComputeConfig, ExperimentConfig, MethodConfig, Precision
from distributed_autolora.config.recipes import demo
from distributed_autolora.core.keyed_random import keyed_uniform
from distributed_autolora.core.objectives import AutoLoRa
from distributed_autolora.core.schedules import LossWeights
from distributed_autolora.data.catalog import embedded_backbone, embedded_folder
from distributed_autolora.training.epoch import LossSums, PhaseSeconds
from distributed_autolora.training.methods.registry import build_objective, fresh_classifier
from distributed_autolora.training.task_data import TaskData
from distributed_autolora.training.trainer import Trainer

NATURAL_BRANCH_ACCURACY = 0.9
"""Sets the loss weights of AutoLoRa."""
PLAIN = "plain step, float32"
FORMATS: tuple[tuple[Precision, Precision], ...] = (
    ("float32", "float32"),
    ("bfloat16", "float32"),
    ("bfloat16", "bfloat16"),
)
"""Number formats of the attack and of the training step."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What to measure."""

    methods: tuple[str, ...] = ("autolora", "vanilla", "twins")
    """Methods by their registered names."""
    rows: int = 64
    """Images of a batch."""
    rounds: int = 7
    """Times that each variant is timed."""
    output: Path = Path("step.json")
    """File to write the numbers to."""


def main() -> None:
    """Measures, prints and writes."""
    flags = tyro.cli(Flags, description=__doc__)
    torch.set_num_threads(1)
    results = {}
    for method in flags.methods:
        results[method] = measure(method, flags.rows, flags.rounds)
        show(method, flags.rows, results[method])
    write({"rows": flags.rows, "methods": results}, flags.output)


def measure(method: str, rows: int, rounds: int) -> dict[str, Any]:
    """Returns milliseconds of a step by variant, ours by phase too, and the share of the natural-branch accuracy."""
    config = replace(demo(), method=MethodConfig(name=method))
    data = TaskData(config, embedded_folder(), torch.device("cpu"))
    batch = data.split.train[:rows]
    x, y = data.plain_batch(batch)
    ours = {formats: Ours(config, data, formats) for formats in FORMATS}
    variants: dict[str, Callable[[], object]] = {PLAIN: Plain(config, data, batch, x, y).take}
    for (attack, train), trainer in ours.items():
        variants[f"attack {attack}, training {train}"] = take(trainer, batch, x, y)
    seconds = interleaved(variants, rounds)
    result: dict[str, Any] = {
        name: {"ms": 1000 * min(taken), "times_as_fast_as_plain": 1 / ratio(seconds, name, PLAIN)}
        for name, taken in seconds.items()
    }
    for (attack, train), trainer in ours.items():
        phases = {name: 1000 * spent / (rounds + 1) for name, spent in trainer.timer.seconds.items()}
        result[f"attack {attack}, training {train}"]["mean_ms_by_phase"] = phases
    fastest = ours[FORMATS[-1]]
    if isinstance(fastest.trainer.objective, AutoLoRa):
        result["natural_branch_share"] = _natural_branch_share(fastest, batch, x, y, rounds)
    return result


class Ours:
    """A trainer as a run has it, and the seconds of its phases."""

    def __init__(self, config: ExperimentConfig, data: TaskData, formats: tuple[Precision, Precision]) -> None:
        compute = ComputeConfig(attack_precision=formats[0], train_precision=formats[1])
        device = torch.device("cpu")
        self.trainer = Trainer(replace(config, compute=compute), data, str(embedded_backbone()), device)
        self.trainer.objective.train()
        self.trainer.set_loss_weights(NATURAL_BRANCH_ACCURACY)
        self.timer, self.sums = PhaseSeconds(), LossSums(10**9, "the benchmark")


def take(ours: Ours, batch: Tensor, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Returns what takes one of our steps."""
    return lambda: ours.trainer.train_step(batch, x, y, 1, ours.sums, ours.timer)


class Plain:
    """The reference: objective, optimiser and noise of one batch."""

    def __init__(self, config: ExperimentConfig, data: TaskData, batch: Tensor, x: Tensor, y: Tensor) -> None:
        self._config, self._x, self._y = config, x, y
        self._backbone = fresh_classifier(config, data.num_classes, str(embedded_backbone()))
        self.objective = build_objective(config, self._backbone)
        if isinstance(self.objective, AutoLoRa):
            self.objective.weights = LossWeights.from_natural_accuracy(NATURAL_BRANCH_ACCURACY)
        optimization = config.optimization
        self._optimizer = torch.optim.SGD(
            self.objective.parameters(),
            lr=optimization.lr,
            momentum=optimization.momentum,
            weight_decay=optimization.weight_decay,
        )
        self._noise = keyed_uniform(config.seed, "attack", 1, batch, tuple(x.shape[1:]))

    def take(self) -> None:
        """Takes one step."""
        attack = self._config.train_attack
        plain_step(
            self.objective,
            self._backbone,
            self._optimizer,
            self._x,
            self._y,
            epsilon=self._config.threat_model.epsilon,
            step_size=attack.step_size,
            num_steps=attack.num_steps,
            noise=self._noise,
        )


def _natural_branch_share(ours: Ours, batch: Tensor, x: Tensor, y: Tensor, rounds: int) -> float:
    """Returns the time that a batch's natural-branch accuracy takes over that of its training step."""
    trainer = ours.trainer
    assert isinstance(trainer.objective, AutoLoRa)
    natural_logits = trainer.objective.natural_logits

    def forward() -> None:
        trainer.objective.eval()
        with torch.no_grad(), trainer.autocast():
            natural_logits(x)
        trainer.objective.train()

    seconds = interleaved({"pass": forward, "step": take(ours, batch, x, y)}, rounds)
    return ratio(seconds, "pass", "step")


def show(method: str, batch: int, result: dict[str, Any]) -> None:
    """Prints the table of one method."""
    rows = []
    for name, values in result.items():
        if isinstance(values, dict):
            phases = values.get("mean_ms_by_phase", {})
            parts = [f"{phases[phase]:.0f}" if phases else "" for phase in ("attack", "step")]
            rows.append((name, f"{values['ms']:.0f}", f"{values['times_as_fast_as_plain']:.2f}", *parts))
    print(f"\n{method}, batch of {batch}, one thread")
    print(table(("one training step", "ms", "speed over plain", "attack, mean ms", "update, mean ms"), rows))
    if "natural_branch_share" in result:
        print(f"the natural-branch accuracy adds {100 * result['natural_branch_share']:.1f} % to an epoch's steps")


if __name__ == "__main__":
    main()
