"""Small tasks for tests: synthetic images that a network can learn."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distributed_autolora.config import (
    AttackConfig,
    ComputeConfig,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizationConfig,
    ScheduleConfig,
    ThreatModelConfig,
)
from distributed_autolora.data.parquet.writer import ImageRow
from distributed_autolora.training.loop import FitResult, fit
from distributed_autolora.training.reporter import NoReports, Reporter
from distributed_autolora.training.task_data import TaskData
from distributed_autolora.training.trainer import Trainer
from tests.data.pictures import write_images

SIZE = 12
CLASSES = ("left", "right", "top")


def write_task(folder: Path, train: int, test: int = 30, seed: int = 0) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("test", test)):
        rows = [ImageRow(image=_png(i, split, seed), label=i % 3, row_id=f"{split}/{i}") for i in range(count)]
        write_images(
            folder / f"{split}.parquet",
            rows,
            class_names=CLASSES,
            task="halves",
            split=split,
            licence="none",
            provenance="synthetic",
        )
    return str(folder)


def small_config(
    folder: str, *, epochs: int = 2, global_batch_size: int = 64, method: str = "autolora", **switches: Any
) -> ExperimentConfig:
    """Returns a config for `write_task`'s data that trains in a second; `switches` are further fields of the method."""
    config = ExperimentConfig(
        recipe="small",
        data=DataConfig(task="halves", path=folder, val_images_min=30),
        model=ModelConfig(backbone="small_resnet", mean=(0.5,), std=(0.25,)),
        threat_model=ThreatModelConfig(epsilon=0.05),
        train_attack=AttackConfig(num_steps=2, step_size=0.02),
        eval_attack=AttackConfig(num_steps=2, step_size=0.02, random_start=False),
        schedule=ScheduleConfig(interval=1),
        optimization=OptimizationConfig(epochs=epochs, global_batch_size=global_batch_size, lr=0.05),
        evaluation=EvaluationConfig(batch_size_per_worker=32, linear_head=False),
        compute=ComputeConfig(attack_precision="float32", train_precision="float32"),
    )
    return replace(config, method=replace(config.method, name=method, **switches))


def changed(config: ExperimentConfig, **groups: dict[str, Any]) -> ExperimentConfig:
    return replace(config, **{name: replace(getattr(config, name), **values) for name, values in groups.items()})


def data_of(config: ExperimentConfig, dtype: torch.dtype = torch.float32) -> TaskData:
    return TaskData(config, str(config.data.path), torch.device("cpu"), dtype)


def trainer_of(config: ExperimentConfig, dtype: torch.dtype = torch.float32) -> Trainer:
    return Trainer(config, data_of(config, dtype), None, torch.device("cpu"), dtype)


def fitted(config: ExperimentConfig, reporter: Reporter | None = None, dtype: torch.dtype = torch.float32) -> FitResult:
    return fit(config, data_of(config, dtype), None, reporter or NoReports(), dtype=dtype)


def take_step(trainer: Trainer, batch: Tensor) -> None:
    """Takes a step of epoch 1 on a global batch of rows, with this worker's images of it."""
    x, y = trainer.data.training_batch(trainer.share(batch), 1, "augmentation")
    trainer.train_step(batch, x, y)


def _png(index: int, split: str, seed: int) -> bytes:
    generator = np.random.default_rng([seed, index, split == "test"])
    pixels = generator.integers(0, 120, (SIZE, SIZE))
    half = (pixels[:, : SIZE // 2], pixels[:, SIZE // 2 :], pixels[: SIZE // 2])[index % 3]
    half += 60
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
