"""A pre-trained backbone as a file, with a card that says where it comes from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.files import write_text
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.records import AccuracyCount, RunResult
from distributed_autolora.reporting.statistics import wilson_interval

if TYPE_CHECKING:
    from distributed_autolora.orchestration.runs.results import FinishedRun


def write_backbone(run: FinishedRun, command: str) -> Path:
    """Writes a finished run's network without its head, and its card beside it."""
    from distributed_autolora.models import build, read_weights, save_weights

    folder, config = run.folder, run.folder.config()
    model = config.model
    classifier = build(
        model.backbone, run.result.num_classes, mean=model.mean, std=model.std, input_size=model.input_size
    )
    weights = folder.path / "backbone.safetensors"
    state = read_weights(folder.path / "model.safetensors")
    backbone = {name: value for name, value in state.items() if not name.startswith(f"{classifier.head_name}.")}
    metadata = {"backbone": model.backbone, "mean": json.dumps(model.mean), "task": config.data.task}
    save_weights(backbone, weights, metadata | {"std": json.dumps(model.std)})
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    parameters = sum(value.numel() for name, value in classifier.backbone.named_parameters() if name in backbone)
    write_text(weights.with_suffix(".md"), _card(folder, config, run.result, digest, parameters, command))
    return weights


def _card(
    folder: RunFolder, config: ExperimentConfig, result: RunResult, digest: str, parameters: int, command: str
) -> str:
    attack = config.train_attack
    eval_attack = config.eval_attack
    rows = {
        "Network": f"{config.model.backbone}, {parameters:,} parameters without its head",
        "Data": f"{config.data.task}: {result.train_images:,} training, {result.val_images:,} validation, "
        f"{result.test_images or 0:,} test images (classes {', '.join(result.class_names)})",
        "Input": f"images in [0, 1], mean {config.model.mean}, std {config.model.std}",
        "Objective": f"{config.method.name}, beta {config.method.trades_beta:g}, from random weights",
        "Threat model": f"{config.threat_model.norm}, epsilon {config.threat_model.epsilon:g}",
        "Training attack": f"PGD, {attack.num_steps} steps of {attack.step_size:g}, "
        f"random start: {attack.random_start}",
        "Epochs": f"{result.stopped_epoch} run; chosen on validation: epoch {result.best_epoch}",
        "Optimiser": f"SGD, lr {config.optimization.lr:g} ({config.schedule.name}), momentum "
        f"{config.optimization.momentum:g}, weight decay {config.optimization.weight_decay:g}, global batch "
        f"{config.optimization.global_batch_size}, seed {config.seed}",
        "Test natural accuracy": _accuracy(None if result.test is None else result.test.natural),
        f"Test robust accuracy (PGD, {eval_attack.num_steps} steps of {eval_attack.step_size:g})": _accuracy(
            None if result.test is None else result.test.robust
        ),
        "Precision": f"attack {config.compute.attack_precision}, training step {config.compute.train_precision}",
        "Config digest": f"`{config.digest()}`",
        "SHA-256": f"`{digest}`",
        "Command": f"`{command}`",
    }
    lines = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    return f"# Backbone of run {folder.name}\n\n| | |\n| --- | --- |\n{lines}\n"


def _accuracy(count: AccuracyCount | None) -> str:
    if count is None:
        return "not measured: the test split was not opened"
    low, high = wilson_interval(count.correct, count.total)
    return f"{count.accuracy:.1%} (95 % interval {low:.1%} to {high:.1%}) of {count.total:,} images"
