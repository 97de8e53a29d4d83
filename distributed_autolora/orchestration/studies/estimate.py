"""What a study will cost, from a speed that was measured, and where that was."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed_autolora.config import DataConfig, ExperimentConfig, ScalingConfig
from distributed_autolora.errors import UserError
from distributed_autolora.files.folder_lock import last_holder
from distributed_autolora.hardware import available_cpus
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.orchestration.studies.folder import DONE, StudyFolder
from distributed_autolora.orchestration.studies.plan import PlannedRun
from distributed_autolora.orchestration.studies.request import OWN_ATTACK, StudyRequest
from distributed_autolora.reporting.markdown import counted
from distributed_autolora.studies import Study

if TYPE_CHECKING:
    from distributed_autolora.data.parquet.reader import ImageTable

_SHIPPED_BACKBONE = "small_resnet"
_SHIPPED_STEPS = 10
# 20 epochs of 1,000 images in 2 min 53 s on 2 workers, validation included.
_SHIPPED_IMAGES_PER_S = 20 * 1000 / (173 * 2)
_SHIPPED_ORIGIN = "the demo in README.md, one of two shared CPU cores; not on this machine"


@dataclass(frozen=True)
class Speed:
    """How fast a worker trains.

    Attributes:
        images_per_s: training images a second and worker, attack and validation included.
        origin: where this was measured, for people.
    """

    images_per_s: float
    origin: str

    def worker_hours(self, config: ExperimentConfig, train_images: int) -> float:
        """Returns the worker-hours of a run of all its epochs."""
        return config.optimization.epochs * train_images / self.images_per_s / 3600


def measured_speed(config: ExperimentConfig, home: Path) -> Speed | None:
    """Returns the speed of the newest finished run on this machine that is alike, else the shipped one where it fits.

    Alike is: same backbone, image size, steps of the training attack, and kind of processor. None: not yet measured.

    Args:
        config: of the run that is to be estimated.
        home: output folder, whose runs and studies are looked through.
    """
    for folder in _finished_here(home):
        try:
            speed = _speed_of(folder, config)
        except (UserError, KeyError):  # a run that was moved, or that another version wrote
            continue
        if speed is not None:
            return speed
    attack = config.train_attack.num_steps == _SHIPPED_STEPS
    if config.model.backbone == _SHIPPED_BACKBONE and attack and not config.scaling.use_gpu:
        return Speed(_SHIPPED_IMAGES_PER_S, _SHIPPED_ORIGIN)
    return None


def _finished_here(home: Path) -> Iterator[RunFolder]:
    """Returns the finished runs that a process of this machine held last, the newest first."""
    results = [*home.glob("runs/*/result.json"), *home.glob("studies/*/runs/*/result.json")]
    here = f" on {os.uname().nodename}"
    for file in sorted(results, key=lambda path: path.stat().st_mtime, reverse=True):
        if last_holder(file.parent).endswith(here):
            yield RunFolder(file.parent)


def _speed_of(folder: RunFolder, config: ExperimentConfig) -> Speed | None:
    if _kind(folder.config()) != _kind(config):
        return None
    result, history = folder.result(), folder.history()
    worker_seconds = sum(record.epoch_seconds * record.num_workers for record in history)
    return Speed(len(history) * result.train_images / worker_seconds, f'run "{folder.name}" on this machine')


def _kind(config: ExperimentConfig) -> dict[str, Any]:
    # Images of no stated size have their own, which is the task's.
    size = config.model.input_size or config.data.image_size or config.data.task
    attack = config.train_attack.num_steps
    return {"backbone": config.model.backbone, "size": size, "attack": attack, "gpu": config.scaling.use_gpu}


def dry_run(request: StudyRequest) -> str:
    """Returns every run of a study with its estimated worker-hours; reads what is there and starts nothing."""
    folder = StudyFolder(request.folder)
    folder.plan(request.study, request.seeds)
    text = dry_run_text(request.study, [run for run in folder.runs if request.wants(run.arm)], request.home)
    return text if request.attacks == OWN_ATTACK else f"{text}\nThe judgement by {request.attacks} is not in it."


def dry_run_text(study: Study, runs: Sequence[PlannedRun], home: Path) -> str:
    """Returns every run with its estimated worker-hours, their sum, the minutes left, and where the speed was measured.

    Args:
        study: the study.
        runs: those that are to be made.
        home: output folder.
    """
    speeds = {arm.name: measured_speed(arm.config, home) for arm in study.arms}
    images = _train_images(study)
    lines, total, left = [f"{study.title}: {len(runs)} runs", ""], 0.0, 0.0
    width = max([60, *(len(run.label) for run in runs)])
    for run in runs:
        arm, speed = study.arm(run.arm), speeds[run.arm]
        count = images[run.arm]
        hours = None if speed is None or count is None else speed.worker_hours(arm.config, count)
        total += hours or 0.0
        left += 0.0 if run.status in DONE else hours or 0.0
        chosen = "" if run.run else "  (settings: the winner of its search)"
        done = "" if run.status == "pending" else f"  ({run.status.replace('_', ' ')})"
        cost = "not known" if hours is None else f"{hours:.2f} worker-hours"
        lines.append(f"  {run.label:<{width}} {cost}{chosen}{done}")
    lines += ["", f"In all {total:.1f} worker-hours." if total else "In all: not known."]
    lines += [_on_this_machine(study.arms[0].config.scaling, left)] if left else []
    if None in images.values():
        lines.append("The training images are not counted: give --data.")
    for origin in dict.fromkeys("" if speed is None else _origin(speed) for speed in speeds.values()):
        lines.append(origin or f"Images per second of {study.arms[0].config.model.backbone}: not yet measured.")
    return "\n".join(lines)


def _origin(speed: Speed) -> str:
    digits = 0 if speed.images_per_s >= 10 else 3
    return f"{speed.images_per_s:.{digits}f} training images a second and worker: {speed.origin}."


def _on_this_machine(scaling: ScalingConfig, worker_hours: float) -> str:
    """Returns how long runs take here that are not done yet, as many at a time as there are CPUs for."""
    at_a_time = max(1, available_cpus() // (scaling.num_workers * scaling.cpus_per_worker))
    minutes = 60 * worker_hours / scaling.num_workers / at_a_time
    return (
        f"What is still to do takes about {minutes:.0f} minutes on this machine, {counted(at_a_time, 'run')} at a time."
    )


def _train_images(study: Study) -> dict[str, int | None]:
    """Returns how many images a run of each arm trains on; None when they are not there to be counted."""
    from distributed_autolora.data.catalog import data_folder
    from distributed_autolora.data.parquet.writer import read_images
    from distributed_autolora.training.task_data import split_rows

    tables: dict[str | None, ImageTable] = {}
    counts: dict[DataConfig, int | None] = {}
    for data, config in {arm.config.data: arm.config for arm in study.arms}.items():
        try:
            if data.path not in tables:
                tables[data.path] = read_images(data_folder(data), "train")
            counts[data] = len(split_rows(config, tables[data.path]).train)
        except UserError:
            counts[data] = None
    return {arm.name: counts[arm.config.data] for arm in study.arms}
