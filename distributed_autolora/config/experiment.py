"""The one frozen description of an experiment: what runs, on what, and how it is judged."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from distributed_autolora.config.reading import from_mapping
from distributed_autolora.config.sections import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AttackConfig,
    ComputeConfig,
    DataConfig,
    EvaluationConfig,
    MethodConfig,
    ModelConfig,
    OptimizationConfig,
    Precision,
    RunConfig,
    ScalingConfig,
    ScheduleConfig,
    ThreatModelConfig,
)
from distributed_autolora.errors import UserError, refuse_secret

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "AttackConfig",
    "ComputeConfig",
    "DataConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "MethodConfig",
    "ModelConfig",
    "OptimizationConfig",
    "Precision",
    "RunConfig",
    "ScalingConfig",
    "ScheduleConfig",
    "ThreatModelConfig",
    "output_home",
]


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything one training run needs to know."""

    recipe: str = "custom"
    """The named experiment that this config came from."""
    seed: int = 0
    """Seed of order, augmentation, attack starts and fresh parameters."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    threat_model: ThreatModelConfig = field(default_factory=ThreatModelConfig)
    train_attack: AttackConfig = field(default_factory=AttackConfig)
    eval_attack: AttackConfig = field(default_factory=lambda: AttackConfig(random_start=False))
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain nested dicts, lists and scalars; `from_dict` inverts it."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Builds a config from nested dicts; missing keys take their defaults.

        Raises:
            UserError: for an unknown key (names the nearest known one) or a value of the wrong type.
        """
        return from_mapping(cls, values)  # type: ignore[no-any-return]

    def digest(self) -> str:
        """Returns the SHA-256 of all that determines the numbers, apart from the seed.

        Workers, paths, names and URIs do not take part.
        """
        values = self.to_dict()
        for key in ("recipe", "seed", "scaling", "run"):
            del values[key]
        del values["data"]["path"], values["data"]["task"], values["model"]["weights"], values["model"]["allow_pickle"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def flat(self) -> dict[str, Any]:
        """Returns {"data.task": ..., "optimization.lr": ...}."""
        return {
            f"{group}.{key}" if key else group: value
            for group, content in self.to_dict().items()
            for key, value in (content.items() if isinstance(content, dict) else [("", content)])
        }

    def validate(self) -> None:
        """Checks every range that can be checked without touching data or hardware.

        Raises:
            UserError: naming the first field that is out of range.
        """
        for name, value in self.flat().items():
            if isinstance(value, str):
                refuse_secret(name, value)
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, float) and not math.isfinite(number):
                    raise UserError(f"{name} is {number}: give a finite number.")
        for name, low, high in RANGES:
            value = self.flat()[name]
            if value is not None and not low <= value <= high:
                bound = f"at least {low}" if math.isinf(high) else f"from {low} to {high}"
                raise UserError(f"{name} is {value}: it must be {bound}.")
        if len(self.model.mean) != len(self.model.std) or min(self.model.std) <= 0:
            raise UserError("model.mean and model.std need one entry a channel each, and every std above 0.")
        if self.model.allow_pickle and self.model.weights_digest is None:
            raise UserError(
                "model.allow_pickle executes code from the weights file: also give model.weights_digest, the SHA-256 "
                "that the file's publisher states."
            )
        if self.eval_attack.random_start:
            raise UserError(
                "eval_attack.random_start is on, but validation and test attacks start at the clean image, so that "
                "epochs, runs and methods can be compared: leave it off, and judge the model with jobs/evaluate.py."
            )
        if self.schedule.min_lr >= self.optimization.lr:
            raise UserError(
                f"schedule.min_lr is {self.schedule.min_lr}: it must be below optimization.lr ({self.optimization.lr})."
            )


def output_home(config: RunConfig) -> Path:
    """Returns the absolute folder that every run is kept under."""
    home = config.output or os.environ.get("DISTRIBUTED_AUTOLORA_HOME") or "~/distributed_autolora"
    return Path(home).expanduser().absolute()


RANGES: tuple[tuple[str, float, float], ...] = (
    ("seed", 0, 2**31 - 1),
    ("data.train_images", 2, math.inf),
    ("data.val_fraction", 0.001, 0.5),
    ("data.val_images_min", 0, math.inf),
    ("data.split_seed", 0, 2**31 - 1),
    ("data.image_size", 1, math.inf),
    ("model.input_size", 1, math.inf),
    ("method.lora_rank", 1, math.inf),
    ("method.sharpening", 0, math.inf),
    ("method.kl_weight_max", 0, math.inf),
    ("method.natural_weight", 0, 1),
    ("method.kl_weight", 0, math.inf),
    ("method.trades_beta", 0, math.inf),
    ("method.twins_gamma", 0, math.inf),
    ("threat_model.epsilon", 0, 1),
    ("train_attack.num_steps", 0, math.inf),
    ("train_attack.step_size", 0, 1),
    ("eval_attack.num_steps", 0, math.inf),
    ("eval_attack.step_size", 0, 1),
    ("schedule.interval", 1, math.inf),
    ("schedule.min_lr", 0, math.inf),
    ("optimization.epochs", 1, math.inf),
    ("optimization.global_batch_size", 2, math.inf),
    ("optimization.lr", 1e-12, math.inf),
    ("optimization.momentum", 0, 0.999999),
    ("optimization.weight_decay", 0, math.inf),
    ("evaluation.batch_size_per_worker", 1, math.inf),
    ("evaluation.gradient_similarity_images", 0, math.inf),
    ("evaluation.masking_every", 0, math.inf),
    ("scaling.num_workers", 1, math.inf),
    ("scaling.cpus_per_worker", 1, math.inf),
    ("scaling.wait_for_resources_s", 1, math.inf),
    ("scaling.collective_timeout_s", 1, math.inf),
    ("scaling.max_failures", 0, math.inf),
    ("scaling.check_finite_every", 1, math.inf),
    ("scaling.checkpoint_every_s", 0, math.inf),
)
"""Name, smallest and largest value; None is always allowed."""
