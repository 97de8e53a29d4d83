"""Calibrates the indicators of masked gradients on models that hide their gradients and on models that do not.

    python -m tests.masking_calibration --folder STATES --output calibration.csv
    python -m tests.masking_calibration --folder STATES --natural-data CIFAR100 --natural-weights E1 E2

Trains small networks in float32 on the shipped task, keeps the state of every epoch in --folder (the same command goes
on with the rest), and then measures each state: accuracy under PGD-10 and under APGD-CE on test images, which say
whether it hides its gradients, and on the validation images what a run measures: FOSC and the check by two stronger
attacks. --natural-weights are state dicts of small_resnet for CIFAR-100, --natural-data is its prepared task.
"""

import csv
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from torch import nn

from benchmarks.timing import BenchmarkFlags
from distributed_autolora.config import (
    AttackConfig,
    ComputeConfig,
    DataConfig,
    ExperimentConfig,
    MethodConfig,
    ModelConfig,
    ScheduleConfig,
    ThreatModelConfig,
)
from distributed_autolora.config.recipes import demo, demo_study
from distributed_autolora.core.attacks import eval_mode, pgd
from distributed_autolora.core.schedules import Decision
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.data.catalog import embedded_backbone, embedded_folder
from distributed_autolora.evaluation.attacks import Budget
from distributed_autolora.evaluation.autoattack import run_parts
from distributed_autolora.evaluation.masking_test import overstates
from distributed_autolora.models import Classifier
from distributed_autolora.training.attacks import build_attacks
from distributed_autolora.training.evaluation import fit_linear_head, validate
from distributed_autolora.training.loop import run_epoch
from distributed_autolora.training.masking_check import FOSC_LIMIT, check_masking
from distributed_autolora.training.methods.registry import fresh_classifier
from distributed_autolora.training.task_data import TaskData
from distributed_autolora.training.trainer import Trainer

HIDES = 0.04
"""A state hides its gradients if APGD-CE breaks at least this share of the images beyond PGD-10."""
TEST_IMAGES = 150
APGD_STEPS = 50
_CPU = torch.device("cpu")
_FLOAT32 = ComputeConfig(attack_precision="float32", train_precision="float32")
ARMS: dict[str, ExperimentConfig] = {
    "authors": replace(demo(), method=MethodConfig(), schedule=ScheduleConfig()),
    "demo": demo(),
    "study": demo_study(),
    "vanilla": replace(demo(), method=MethodConfig(name="vanilla"), schedule=ScheduleConfig(name="step_decay")),
}
"""AutoLoRa with the authors' rule, the demo's recipe, a study's, and plain adversarial training (vanilla RFT)."""


@dataclass(frozen=True, kw_only=True)
class Flags(BenchmarkFlags):
    """What to train and measure."""

    folder: Path = Path("masking-states")
    """Keeps the states, ARM-SEED/EPOCH.safetensors."""
    runs: tuple[str, ...] = ("authors-1-12", "authors-0-8", "demo-1-10", "authors-2-12", "study-0-8", "vanilla-0-6")
    """Runs to train: arm, seed and last epoch."""
    natural_weights: tuple[Path, ...] = ()
    """States of a network on natural images."""
    natural_data: Path | None = None
    """Prepared CIFAR-100, for --natural-weights."""
    output: Path = Path("masking-calibration.csv")
    """Table to write; states that it has are not measured again."""


@dataclass(frozen=True)
class State:
    """One measured state. `pgd10` and `apgd_ce` count the robust test images of `images`; the rest is as in a run."""

    source: str
    epoch: int
    images: int
    natural: int
    pgd10: int
    apgd_ce: int
    fosc: float
    check_images: int
    broken: int
    broken_by_loss: int

    @property
    def hides(self) -> bool:
        """Whether APGD-CE shows that the state hides its gradients from PGD-10."""
        return self.pgd10 - self.apgd_ce >= HIDES * self.images


Indicator = Literal["FOSC", "masking gap", "loss gap"]


def alarms(state: State, indicator: Indicator) -> bool:
    """Tells whether an indicator calls the state masked; the loss gap as if it were the masking gap."""
    if indicator == "FOSC":
        return state.fosc > FOSC_LIMIT
    return overstates(state.broken if indicator == "masking gap" else state.broken_by_loss, state.check_images)


def outcome(states: list[State], indicator: Indicator) -> dict[str, int]:
    """Counts hits and misses among the states that hide, and false alarms and the silent among those that do not."""
    names = {(True, True): "hits", (True, False): "misses", (False, True): "false alarms", (False, False): "silent"}
    found = [names[state.hides, alarms(state, indicator)] for state in states]
    return {name: found.count(name) for name in names.values()}


def read_states(file: Path) -> list[State]:
    """Reads a table."""
    if not file.exists():
        return []
    types = State.__annotations__
    with file.open(newline="") as lines:
        return [State(**{name: types[name](text) for name, text in row.items()}) for row in csv.DictReader(lines)]


def train(name: str, folder: Path) -> None:
    """Trains one run and keeps the state after the steps of every epoch, before a restore."""
    arm, seed, epochs = name.split("-")
    place = folder / f"{arm}-{seed}"
    if (place / f"{int(epochs):02d}.safetensors").exists():
        return
    place.mkdir(parents=True, exist_ok=True)
    config = replace(ARMS[arm], seed=int(seed), compute=_FLOAT32)
    config = replace(config, evaluation=replace(config.evaluation, test_split=False))
    trainer = Trainer(config, TaskData(config, str(embedded_folder()), _CPU), str(embedded_backbone()), _CPU)

    def keep_and_follow(follow: partial[None], decision: Decision) -> None:
        weights = {key: value.contiguous() for key, value in trainer.deployed.state_dict().items()}
        safetensors.torch.save_file(weights, place / f"{len(trainer.history) + 1:02d}.safetensors")
        follow(decision)

    trainer.follow = partial(keep_and_follow, partial(trainer.follow))  # type: ignore[method-assign]
    while not trainer.is_finished and len(trainer.history) < int(epochs):
        run_epoch(trainer)
        print(f"{name}: epoch {len(trainer.history)}", flush=True)


def measure(source: str, epoch: int, config: ExperimentConfig, data: TaskData, model: Classifier) -> State:
    """Measures one state: the label on test images, the indicators on validation images."""
    threat_model = ThreatModel(config.threat_model.norm, config.threat_model.epsilon)
    attacks = build_attacks(config, model, model)
    found = validate(config, model, attacks, data)
    check = check_masking(config, model, attacks, data, found.outcomes)
    assert check is not None
    attacks.network.refresh(model)
    x, y = data.test_batch(torch.arange(min(TEST_IMAGES, data.num_test)))
    network: nn.Module = attacks.network
    with eval_mode(model), torch.no_grad():
        natural = network(x).argmax(1) == y
        search = {"num_steps": 10, "step_size": config.eval_attack.step_size, "random_start": False}
        x_adv = pgd(network, x, y, threat_model=threat_model, **search)  # type: ignore[arg-type]
        left = natural & (network(x_adv).argmax(1) == y)
        parts, budget = ("apgd-ce",), Budget(apgd_steps=APGD_STEPS)
        strong = run_parts(network, x[left], y[left], threat_model=threat_model, parts=parts, seed=0, budget=budget)
    counts = check.counts
    return State(
        source, epoch, len(x), int(natural.sum()), int(left.sum()), int((strong.broken_by == 1).sum()),
        round(found.fosc, 4), counts.images, counts.broken, counts.broken_by_loss or 0,
    )  # fmt: skip


def states(flags: Flags) -> Iterator[tuple[str, int, ExperimentConfig, Path | None]]:
    """Yields source, epoch, config and weights of every state; without weights the backbone under a linear head."""
    yield "backbone-linear-head", 0, replace(demo(), compute=_FLOAT32), None
    for name in sorted({run.rpartition("-")[0] for run in flags.runs}):
        config = replace(ARMS[name.partition("-")[0]], compute=_FLOAT32)
        for file in sorted((flags.folder / name).glob("*.safetensors")):
            yield name, int(file.stem), config, file
    for epoch, file in enumerate(flags.natural_weights, 1):
        yield "cifar100", epoch, natural_config(str(flags.natural_data)), file


def natural_config(folder: str) -> ExperimentConfig:
    """Returns a config for CIFAR-100 at 32 pixels: 1.25 % of the training images validate."""
    return ExperimentConfig(
        data=DataConfig(task="cifar100", path=folder, val_fraction=0.0125),
        model=ModelConfig(backbone="small_resnet", mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)),
        threat_model=ThreatModelConfig(epsilon=8 / 255),
        eval_attack=AttackConfig(random_start=False),
        compute=_FLOAT32,
    )


def main(flags: Flags) -> None:
    """Trains what is missing, measures what is missing, and prints what each indicator finds."""
    for run in flags.runs:
        train(run, flags.folder)
    found = read_states(flags.output)
    known, tasks = {(state.source, state.epoch) for state in found}, dict[str, TaskData]()
    for source, epoch, config, file in states(flags):
        if (source, epoch) in known:
            continue
        place = config.data.path or str(embedded_folder())
        key = f"{place} {config.data.train_images}"
        data = tasks[key] = tasks.get(key) or TaskData(config, place, _CPU)
        model = fresh_classifier(config, data.num_classes, str(embedded_backbone()) if file is None else None)
        if file is None:
            fit_linear_head(model, data.plain_batches, data.split.train, 250)
        else:
            weights = safetensors.torch.load_file(file)
            (model if "backbone.conv1.weight" in weights else model.backbone).load_state_dict(weights)
        found.append(measure(source, epoch, config, data, model))
        print(found[-1], flush=True)
        with flags.output.open("w", newline="") as lines:
            writer = csv.DictWriter(lines, [*State.__annotations__], lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(asdict, found))
    indicators: tuple[Indicator, ...] = ("FOSC", "masking gap", "loss gap")
    for indicator in indicators:
        print(indicator, outcome(found, indicator))


if __name__ == "__main__":
    import tyro

    torch.set_num_threads(1)
    main(tyro.cli(Flags, description=__doc__))
