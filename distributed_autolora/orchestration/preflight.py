"""Looks at everything a run needs before it starts, and writes down what it found."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.data.catalog import data_folder, embedded_backbone
from distributed_autolora.data.parquet import data_digest
from distributed_autolora.errors import UserError

EMBEDDED = "embedded"
_FEW_VALIDATION_IMAGES = 100


@dataclass(frozen=True)
class Inputs:
    """Where a run's data and weights are on this machine."""

    data_folder: str
    weights: str | None


def find_inputs(config: ExperimentConfig) -> tuple[ExperimentConfig, Inputs]:
    """Finds data and weights, and returns the config with their digests filled in.

    Raises:
        UserError: when they are missing, or are not those that the config names by digest.
    """
    config.validate()
    folder = data_folder(config.data)
    weights = config.model.weights
    if weights is not None:
        weights = str(embedded_backbone() if weights == EMBEDDED else Path(weights).expanduser().absolute())
        if not Path(weights).is_file():
            raise UserError(f"Weights: there is no file {weights}. Give --model.weights an existing file.")
    data = _checked("data", folder, config.data.digest, data_digest(folder))
    model = _checked("weights", weights, config.model.weights_digest, _file_digest(weights)) if weights else None
    # Absolute paths, so that the config can be fed back from any folder.
    path = None if config.data.path is None else folder
    kept = config.model.weights if config.model.weights == EMBEDDED else weights
    config = replace(
        config,
        data=replace(config.data, digest=data, path=path),
        model=replace(config.model, weights_digest=model, weights=kept),
    )
    return config, Inputs(folder, weights)


def check_inputs(config: ExperimentConfig, inputs: Inputs) -> list[str]:
    """Opens all data, decodes every image, builds the model, and splits; returns warnings.

    Raises:
        UserError: for anything that would end the run later.
    """
    from distributed_autolora.data.parquet import check_same_classes, read_images
    from distributed_autolora.models import build
    from distributed_autolora.training.task_data import image_source, split_rows

    train, test = read_images(inputs.data_folder, "train"), read_images(inputs.data_folder, "test")
    check_same_classes(train, test)
    split = split_rows(config, train)
    model = config.model
    build(model.backbone, len(train.class_names), inputs.weights, mean=model.mean, std=model.std)
    for table in (train, test):
        image_source(config, table).check_decodable()
    return _warnings(config, len(split.train), len(split.val))


def _warnings(config: ExperimentConfig, train_images: int, val_images: int) -> list[str]:
    warnings = []
    if val_images < _FEW_VALIDATION_IMAGES:
        warnings.append(
            f"only {val_images} validation images: the learning rate and the choice of the best epoch follow their "
            "robust accuracy, and with so few they follow noise. Give more training images, or a larger "
            "--data.val-fraction."
        )
    for name, attack in (("train_attack", config.train_attack), ("eval_attack", config.eval_attack)):
        if attack.step_size > config.threat_model.epsilon:
            warnings.append(
                f"{name}.step_size {attack.step_size:g} is larger than epsilon {config.threat_model.epsilon:g}: "
                "every step is cut back to the border of the threat model."
            )
    if train_images < config.optimization.global_batch_size:
        warnings.append(
            f"the {train_images} training images are fewer than one global batch "
            f"({config.optimization.global_batch_size}): every epoch is a single step."
        )
    if config.model.weights is None and config.method.name == "autolora":
        warnings.append("model.weights is not given: this fine-tunes a random network.")
    return warnings


def _checked(what: str, where: str | None, expected: str | None, found: str) -> str:
    if expected not in (None, found):
        raise UserError(
            f"The {what} at {where} are not those of the config (digest {found[:12]}, not {str(expected)[:12]}). "
            "Give the original path, or remove the digest from the config."
        )
    return found


def _file_digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
