"""One model of the check of quality: trained on one path with one seed, judged in float32, and kept."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distributed_autolora.config import ComputeConfig, ExperimentConfig
from distributed_autolora.core.attacks import pgd
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.evaluation.attacks import parse
from distributed_autolora.evaluation.chunks import evaluate_chunk
from distributed_autolora.files.atomic_write import atomic_write
from distributed_autolora.models import save_weights
from distributed_autolora.models.portable import NetworkDescription
from distributed_autolora.orchestration.runs.preflight import Inputs, find_inputs
from distributed_autolora.training.checkpoint import TrainingState
from distributed_autolora.training.loop import fit
from distributed_autolora.training.methods.cost import epoch_passes
from distributed_autolora.training.task_data import TaskData
from distributed_autolora.training.trainer import Trainer

FAST, FLOAT32 = "fast", "float32"
PATHS = {
    FAST: ComputeConfig(attack_precision="bfloat16", train_precision="bfloat16"),
    FLOAT32: ComputeConfig(attack_precision="float32", train_precision="float32"),
}
"""Number formats of the attack and of the training step."""
ATTACKS = "pgd10,pgd100"
_BATCH = 250
_TIMED_IMAGES = 64
_FORWARD_SHARE = 1 / 3
"""Of the time of a forward and a backward, roughly."""
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One model to train and judge."""

    path: str
    """One of `PATHS`."""
    config: ExperimentConfig
    inputs: Inputs
    folder: Path
    """Where all tasks keep what they found."""

    @property
    def place(self) -> Path:
        """The folder of this one; with another config it is another."""
        return self.folder / f"{self.path}-seed{self.config.seed}-{self.config.digest()[:8]}"

    def found(self) -> dict[str, Any] | None:
        """Returns what `train_and_judge` found when it was finished, or None."""
        file = self.place / "result.json"
        return dict(json.loads(file.read_text())) if file.is_file() else None


class _NoReports:
    """For a run that begins anew when it was cut off."""

    def latest(self) -> TrainingState | None:
        """Returns None: every run is new."""
        return None

    def report(self, state: TrainingState) -> None:
        """Keeps nothing."""

    def is_machine_leaving(self) -> bool:
        """Returns False: there is one machine."""
        return False


def tasks_of(config: ExperimentConfig, seeds: tuple[int, ...], folder: Path) -> list[Task]:
    """Returns both paths of every seed.

    Args:
        config: what is trained, but for number formats and seed.
        seeds: at least one.
        folder: where results are kept.

    Raises:
        UserError: for data or weights that are missing.
    """
    # Training itself does not open the test split.
    config, inputs = find_inputs(replace(config, evaluation=replace(config.evaluation, test_split=False)))
    return [
        Task(path=path, config=replace(config, seed=seed, compute=formats), inputs=inputs, folder=folder.absolute())
        for seed in seeds
        for path, formats in PATHS.items()
    ]


def work_off(tasks: list[Task], jobs: int) -> list[dict[str, Any]]:
    """Trains and judges what is not finished yet, and returns what was found, in the order of the tasks.

    Args:
        tasks: what is to be done.
        jobs: processes at a time, at least 1.
    """
    missing = [task for task in tasks if task.found() is None]
    if missing:
        os.environ["OMP_NUM_THREADS"] = "1"  # before the new processes import torch
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(jobs, len(missing)), context) as pool:
            for done in as_completed([pool.submit(train_and_judge, task) for task in missing]):
                found = done.result()
                print(f"{found['path']}, seed {found['seed']}: {found['seconds'] / 60:.1f} minutes", flush=True)
    return [train_and_judge(task) for task in tasks]


def train_and_judge(task: Task) -> dict[str, Any]:
    """Returns what a task found; one that is finished is not done again.

    Returns:
        "path", "seed", the number formats, "epochs", "images", "correct" ({accuracy: test images judged rightly}),
        "seconds_of_training" and "seconds" with the judgement.
    """
    if (known := task.found()) is not None:
        return known
    torch.set_num_threads(1)
    start, config = time.perf_counter(), task.config
    data = TaskData(config, task.inputs.data_folder, _CPU)
    result = fit(config, data, task.inputs.weights, _NoReports())
    trained = time.perf_counter()
    found = {
        "path": task.path,
        "seed": config.seed,
        **asdict(config.compute),
        "epochs": len(result.history),
        "images": data.num_test,
        "correct": _judged(config, data, result.weights, task.place),
        "seconds_of_training": trained - start,
        "seconds": time.perf_counter() - start,
    }
    with atomic_write(task.place / "result.json") as unfinished:
        unfinished.write_text(json.dumps(found, indent=2) + "\n")
    return found


def _judged(config: ExperimentConfig, data: TaskData, weights: dict[str, Tensor], place: Path) -> dict[str, int]:
    """Writes the model, and returns how many test images it judges rightly in float32, by accuracy."""
    settings = config.model
    description = NetworkDescription(
        backbone=settings.backbone,
        num_classes=data.num_classes,
        mean=tuple(settings.mean),
        std=tuple(settings.std),
        input_size=settings.input_size,
    )
    model = description.build()
    model.load_state_dict(weights)
    place.mkdir(parents=True, exist_ok=True)
    save_weights(model.backbone.state_dict(), place / "model.safetensors", description.metadata())
    threat_model = ThreatModel(config.threat_model.norm, config.threat_model.epsilon)
    correct: dict[str, int] = {}
    for rows in torch.arange(data.num_test).split(_BATCH):
        x, y = data.test_batch(rows)
        step = config.eval_attack.step_size
        # Both attacks begin at the clean image: the seed decides nothing.
        columns = evaluate_chunk(model, x, y, threat_model=threat_model, attacks=parse(ATTACKS), seed=0, step_size=step)
        right = {"natural_accuracy": columns["natural_prediction"] == y.numpy()}
        right |= {f"robust_accuracy/{attack.name}": columns[f"robust/{attack.name}"] for attack in parse(ATTACKS)}
        correct = {name: correct.get(name, 0) + int(values.sum()) for name, values in right.items()}
    return correct


def expected_seconds(tasks: list[Task]) -> float:
    """Returns about how many seconds of one process the tasks take at most: attacks timed now, times their number."""
    speeds = {path: _speeds(next(t for t in tasks if t.path == path)) for path in {task.path for task in tasks}}
    return sum(_seconds(task, *speeds[task.path]) for task in tasks)


def _speeds(task: Task) -> tuple[float, float, tuple[int, int, int]]:
    """Returns seconds of an image's step of the training and of a judging attack, and the images of each split."""
    config = task.config
    data = TaskData(config, task.inputs.data_folder, _CPU)
    trainer = Trainer(config, data, task.inputs.weights, _CPU)
    x, y = data.plain_batch(data.split.train[:_TIMED_IMAGES])
    threat_model = ThreatModel(config.threat_model.norm, config.threat_model.epsilon)
    number = config.train_attack.num_steps

    def training() -> object:
        return trainer.train_attack(trainer.attack_network, x, y, noise=torch.zeros_like(x))

    def judging() -> object:
        return pgd(trainer.backbone, x, y, threat_model=threat_model, num_steps=number, step_size=0.0)

    seconds = []
    for attack in (training, judging):
        attack()
        start = time.perf_counter()
        attack()
        seconds.append((time.perf_counter() - start) / (number * len(x)))
    return seconds[0], seconds[1], (len(data.split.train), len(data.split.val), data.num_test)


def _seconds(task: Task, training: float, judging: float, images: tuple[int, int, int]) -> float:
    train, val, test = images
    passes = [epoch_passes(task.config, train, val, 1 + epoch) for epoch in range(task.config.optimization.epochs)]
    backward = sum(one.backward for one in passes)
    alone = sum(one.forward for one in passes) - backward
    steps = sum(attack.num_steps for attack in parse(ATTACKS))
    return training * (backward + _FORWARD_SHARE * alone) + judging * test * steps
