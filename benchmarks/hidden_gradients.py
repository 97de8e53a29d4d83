"""Judges every epoch of a run by a strong attack: in which epochs does PGD-10 promise too much?

    python benchmarks/hidden_gradients.py                             # four variants, one seed; about an hour of a core
    python benchmarks/hidden_gradients.py --epochs 4 --images 50      # shorter

The demo's task at its learning rate, without halvings or restores: step decay, so that half of the epochs have the
full rate. After each epoch some validation images meet PGD-10, as the run's schedule would see it, and APGD-CE with 100
steps, both in float32. An epoch *hides* gradients when APGD-CE takes at least 5 points more. Prints the two accuracies
by epoch and how many epochs hide, and writes the same as JSON.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout has no package "benchmarks"

from benchmarks.timing import table, write
from distributed_autolora.config import ExperimentConfig, MethodConfig, ScheduleConfig
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.data.splits import stratified_subset
from distributed_autolora.evaluation.attacks import parse
from distributed_autolora.evaluation.chunks import evaluate_chunk
from distributed_autolora.orchestration.preflight import Inputs, find_inputs
from distributed_autolora.recipes import demo
from distributed_autolora.training.loop import run_epoch
from distributed_autolora.training.task_data import TaskData
from distributed_autolora.training.trainer import Trainer

VARIANTS = {
    "AutoLoRa, joint": MethodConfig(soft_labels="joint"),
    "AutoLoRa, detached": MethodConfig(soft_labels="detached"),
    "vanilla RFT, joint": MethodConfig(name="vanilla", soft_labels="joint"),
    "vanilla RFT, detached": MethodConfig(name="vanilla", soft_labels="detached"),
}
ATTACKS = "pgd10,apgd-ce"
_HIDES = 0.05
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What to train and judge."""

    epochs: int = 20
    """Passes over the training images."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; each is trained once a variant."""
    images: int = 100
    """Validation images that meet both attacks, the same in all runs."""
    jobs: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes at a time, of one thread each."""
    output: Path = Path("hidden_gradients.json")
    """File to write the numbers to."""


@dataclass(frozen=True)
class Task:
    """One run."""

    variant: str
    config: ExperimentConfig
    inputs: Inputs
    images: int


def main() -> None:
    """Trains, judges, prints and writes."""
    flags = tyro.cli(Flags, description=__doc__)
    base, inputs = find_inputs(replace(demo(), evaluation=replace(demo().evaluation, test_split=False)))
    base = replace(
        base,
        schedule=ScheduleConfig(name="step_decay"),
        optimization=replace(base.optimization, epochs=flags.epochs),
        evaluation=replace(base.evaluation, masking_every=0),
    )
    tasks = [
        Task(variant, replace(base, seed=seed, method=method), inputs, flags.images)
        for seed, (variant, method) in product(flags.seeds, VARIANTS.items())
    ]
    os.environ["OMP_NUM_THREADS"] = "1"  # before the new processes import torch
    runs = []
    with ProcessPoolExecutor(flags.jobs, multiprocessing.get_context("spawn")) as pool:
        for run in pool.map(train_and_judge, tasks):
            show(run)
            runs.append(run)
    print(f"\n{table(('hiding epochs', 'at the full rate', 'later'), [hiding(run) for run in runs])}")
    write({"epochs": flags.epochs, "images": flags.images, "hides_from": _HIDES, "runs": runs}, flags.output)


def train_and_judge(task: Task) -> dict[str, Any]:
    """Returns what both attacks leave after every epoch of a run.

    Returns:
        "variant", "seed" and "epochs": the learning rate of each and its accuracies on the checked images.
    """
    torch.set_num_threads(1)
    config = task.config
    data = TaskData(config, task.inputs.data_folder, _CPU)
    trainer = Trainer(config, data, task.inputs.weights, _CPU)
    places = stratified_subset(data.table.labels[data.split.val], task.images, config.data.split_seed)
    x, y = data.plain_batch(data.split.val[places])
    threat_model = ThreatModel(config.threat_model.norm, config.threat_model.epsilon)
    epochs = []
    for epoch in range(1, config.optimization.epochs + 1):
        run_epoch(trainer, epoch)
        # PGD-10 begins at the clean image; APGD draws its starts from the seed.
        step = config.eval_attack.step_size
        found = evaluate_chunk(
            trainer.backbone, x, y, threat_model=threat_model, attacks=parse(ATTACKS), seed=epoch, step_size=step
        )
        accuracies = {attack.name: float(found[f"robust/{attack.name}"].mean()) for attack in parse(ATTACKS)}
        epochs.append({"epoch": epoch, "lr": trainer.history[-1]["lr"], **accuracies})
    return {"variant": task.variant, "seed": config.seed, "epochs": epochs}


def hiding(run: dict[str, Any]) -> tuple[str, str, str]:
    """Returns a line of the table: how many epochs hide gradients, of those at the full rate and of the others."""
    first = run["epochs"][0]["lr"]

    def counted(epochs: list[dict[str, Any]]) -> str:
        hidden = [one for one in epochs if one["pgd10"] - one["apgd-ce"] > _HIDES - 1e-9]
        return f"{len(hidden)} of {len(epochs)}"

    full = [one for one in run["epochs"] if one["lr"] == first]
    return f"{run['variant']}, seed {run['seed']}", counted(full), counted(run["epochs"][len(full) :])


def show(run: dict[str, Any]) -> None:
    """Prints the accuracies of a run in per cent by epoch."""
    rows = [(name, *(f"{100 * one[name]:.0f}" for one in run["epochs"])) for name in ("pgd10", "apgd-ce")]
    numbers = [str(one["epoch"]) for one in run["epochs"]]
    title = f"{run['variant']}, seed {run['seed']}"
    print(f"\n{table((title, *numbers), rows)}", flush=True)


if __name__ == "__main__":
    main()
