"""The frozen description of an experiment, its YAML file, and the strict reading of both."""

import dataclasses
import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from distributed_autolora.config import sections
from distributed_autolora.config.sections import AttackConfig, RunConfig, ranged
from distributed_autolora.console import command
from distributed_autolora.errors import UserError, is_utf8, refuse_secret
from distributed_autolora.records.reader import StrictReader

NOT_IN_DIGEST = ("recipe", "scaling", "run", "data.path", "data.task", "model.weights", "model.allow_pickle")
"""Values and sections that determine no number: workers, places, names and URIs."""

IN_DIGEST_UNLESS_DEFAULT: dict[str, dict[str, Any]] = {
    "optimization": {"batch_norm": "global", "batch_norm_shards": None},
    "schedule": {"decay_at": [1 / 2, 5 / 6]},
    "method": {"head_init": "random"},
}
"""Values that came after runs had digests: at their default, they change none."""


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything one training run needs to know."""

    recipe: str = "custom"
    """The named experiment that this config came from."""
    seed: int = ranged(0, 0, 2**31 - 1)
    """Seed of order, augmentation, attack starts and fresh parameters."""
    data: sections.DataConfig = field(default_factory=sections.DataConfig)
    model: sections.ModelConfig = field(default_factory=sections.ModelConfig)
    method: sections.MethodConfig = field(default_factory=sections.MethodConfig)
    threat_model: sections.ThreatModelConfig = field(default_factory=sections.ThreatModelConfig)
    train_attack: AttackConfig = field(default_factory=AttackConfig)
    eval_attack: AttackConfig = field(default_factory=lambda: AttackConfig(random_start=False))
    schedule: sections.ScheduleConfig = field(default_factory=sections.ScheduleConfig)
    optimization: sections.OptimizationConfig = field(default_factory=sections.OptimizationConfig)
    evaluation: sections.EvaluationConfig = field(default_factory=sections.EvaluationConfig)
    compute: sections.ComputeConfig = field(default_factory=sections.ComputeConfig)
    scaling: sections.ScalingConfig = field(default_factory=sections.ScalingConfig)
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
        return StrictReader("Config", advice=" --help lists all.", read_number=fraction).read(cls, values)  # type: ignore[no-any-return]

    def digest(self) -> str:
        """Returns the SHA-256 of all that determines the numbers, apart from the seed."""
        values = self.to_dict()
        for key in ("seed", *NOT_IN_DIGEST):
            group, _, name = key.rpartition(".")
            del (values[group] if group else values)[name]
        for group, defaults in IN_DIGEST_UNLESS_DEFAULT.items():
            values[group] = {key: value for key, value in values[group].items() if (key, value) not in defaults.items()}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def differences(self, other: Self) -> dict[str, tuple[Any, Any]]:
        """Returns {"optimization.lr": (here, there), ...} of the seed and what else determines the numbers."""
        here, there = self.flat(), other.flat()
        return {
            key: (here[key], there[key])
            for key in here
            if here[key] != there[key] and not {key, key.partition(".")[0]} & set(NOT_IN_DIGEST)
        }

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
        _check_ranges(self)
        if len(self.model.mean) != len(self.model.std) or min(self.model.std) <= 0:
            raise UserError("model.mean and model.std need one entry a channel each, and every std above 0.")
        if self.model.allow_pickle and self.model.weights_digest is None:
            raise UserError(
                "model.allow_pickle executes code from the weights file: also give model.weights_digest, the SHA-256 "
                "that the file's publisher states."
            )
        sizes = {
            "threat_model.epsilon": self.threat_model.epsilon,
            "train_attack.step_size": self.train_attack.step_size,
            "eval_attack.step_size": self.eval_attack.step_size,
        }
        for name, size in sizes.items():
            if self.threat_model.norm == "linf" and size > 1:
                raise UserError(f"{name} is {size}: it must be from 0 to 1.")
        _check_workers(self.optimization, self.scaling)
        if self.eval_attack.random_start:
            raise UserError(
                "eval_attack.random_start is on, but validation and test attacks start at the clean image, so that "
                "epochs, runs and methods can be compared: leave it off, and evaluate the model with "
                f"{command('evaluate')}."
            )
        if self.schedule.min_lr >= self.optimization.lr:
            raise UserError(
                f"schedule.min_lr is {self.schedule.min_lr}: it must be below optimization.lr ({self.optimization.lr})."
            )


def output_home(config: RunConfig) -> Path:
    """Returns the absolute folder that every run is kept under."""
    home = config.output or os.environ.get("DISTRIBUTED_AUTOLORA_HOME") or "~/distributed_autolora"
    path = Path(home).expanduser().absolute()
    if not is_utf8(str(path)):
        raise UserError(f"The output folder {str(path)!a} has a name that is not UTF-8: choose another.")
    return path


def config_text(config: ExperimentConfig) -> str:
    """Returns the YAML that `read_config` and --config take, one line for each value."""
    return str(yaml.safe_dump(config.to_dict(), sort_keys=False, width=math.inf, allow_unicode=True))


def read_config(path: Path) -> ExperimentConfig:
    """Reads a config that `config_text` wrote; keys of later versions take their defaults.

    Raises:
        UserError: for a missing file, broken YAML, an unknown key or a wrong type.
    """
    return ExperimentConfig.from_dict(read_values(path))


def read_values(path: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file; what is in it is not checked.

    Raises:
        UserError: for a missing file, or broken YAML.
    """
    try:
        values = yaml.safe_load(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Config: {path} cannot be read ({error.strerror}). Check the path.") from None
    except RecursionError:
        raise UserError(f"Config: {path} is nested too deeply. Correct it.") from None
    except (yaml.YAMLError, ValueError) as error:  # a ValueError is text that is not UTF-8, or a date that there is not
        raise UserError(f"Config: {path} is not YAML ({' '.join(str(error).split())}). Correct it.") from None
    return values or {}


def fraction(text: str) -> float:
    """Reads "0.1" or "8/255".

    Raises:
        ValueError: for anything else.
    """
    numerator, slash, denominator = text.partition("/")
    try:
        return float(numerator) / float(denominator) if slash else float(numerator)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text} is not a number such as 0.1 or 8/255") from None


def _check_workers(optimization: sections.OptimizationConfig, scaling: sections.ScalingConfig) -> None:
    shards, name = optimization.batch_norm_shards, "optimization.batch_norm_shards"
    workers = scaling.num_workers if scaling.max_workers is None else scaling.max_workers
    if workers < scaling.num_workers:
        raise UserError(f"scaling.max_workers is {workers}: it must be at least num_workers ({scaling.num_workers}).")
    if scaling.max_workers is not None and optimization.batch_norm == "global":
        raise UserError(
            f"A number of workers that changes ({scaling.num_workers} to {workers}) needs batch norm that does not "
            f"depend on it: also give --optimization.batch-norm shards --optimization.batch-norm-shards {2 * workers}."
        )
    if optimization.batch_norm == "global":
        if shards is not None:
            raise UserError(
                f'{name} is {shards}, but optimization.batch_norm is "global": set that to "shards", or give no {name}.'
            )
    elif shards is None:
        raise UserError(f'optimization.batch_norm is "shards": also give {name}, a multiple of the number of workers.')
    elif shards > optimization.global_batch_size:
        raise UserError(
            f"{name} is {shards}, but a global batch has {optimization.global_batch_size} images: give at most as many."
        )
    elif shards < workers:
        raise UserError(
            f"{name} is {shards}, but each of {workers} workers needs a shard of its own: give at most {shards} "
            f"workers, or a multiple of {workers} as {name}."
        )


def _check_ranges(config: Any, where: str = "") -> None:
    for item in dataclasses.fields(config):
        name, value = f"{where}{item.name}", getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            _check_ranges(value, f"{name}.")
        elif isinstance(value, str):
            refuse_secret(name, value)
        low, high = item.metadata.get("range", (-math.inf, math.inf))
        for number in value if isinstance(value, tuple) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{name} is {number}: give a finite number.")
            if isinstance(number, int | float) and not low <= number <= high:
                bound = f"at least {low}" if math.isinf(high) else f"from {low} to {high}"
                raise UserError(f"{name} is {number}: it must be {bound}.")
