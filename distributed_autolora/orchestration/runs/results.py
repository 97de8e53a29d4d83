"""What is left when training is done: the deployable model, the result, figures, and the tracking server's share."""

import hashlib
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.config.experiment import config_text
from distributed_autolora.errors import some
from distributed_autolora.files import atomic_write, write_text
from distributed_autolora.models import read_weights, save_weights
from distributed_autolora.models.portable import NetworkDescription, PortableModel
from distributed_autolora.orchestration import mlflow_tracking
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.records import AccuracyCount, RunResult, TrackedRun, total_cost
from distributed_autolora.reporting.masking import masking_summary
from distributed_autolora.reporting.run.figure import curves_figure
from distributed_autolora.reporting.run.samples_figure import samples_figure
from distributed_autolora.reporting.run.table import result_table
from distributed_autolora.reporting.statistics import wilson_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ARTIFACTS = ("model.safetensors", "curves.png", "samples.png", "outcomes.parquet")


@dataclass(frozen=True)
class FinishedRun:
    """A run that has its result."""

    folder: RunFolder
    result: RunResult


def finish(
    config: ExperimentConfig, folder: RunFolder, returned: dict[str, Any], mlflow: dict[str, str]
) -> FinishedRun:
    """Writes everything that a finished run leaves, and prints its table.

    The result is written when all that it needs is there; what the tracking server could not take then is
    given to it by the same command.
    """
    history = returned["history"]
    result = RunResult(
        name=folder.name,
        recipe=config.recipe,
        seed=config.seed,
        config_digest=config.digest(),
        method=config.method.name,
        task=config.data.task,
        backbone=config.model.backbone,
        schedule=config.schedule.name,
        rule=config.schedule.rule if config.schedule.name == "automatic" else None,
        **vars(returned["summary"]),
        masking=masking_summary(history),
        cost=total_cost(history),
        mlflow=TrackedRun(**mlflow),
        folder=str(folder.path),
    )
    folder.write_history(history)
    weights = {name.removeprefix("backbone."): torch.tensor(value) for name, value in returned["weights"].items()}
    model = PortableModel(NetworkDescription.of(config.model, result.num_classes), weights, result.class_names)
    save_weights(weights, folder.path / "model.safetensors", model.metadata())
    _save_figure(curves_figure(history, result), folder.path / "curves.png")
    if result.test is not None:
        figure = samples_figure(returned["samples"], result.class_names, result.epsilon, result.norm)
        _save_figure(figure, folder.path / "samples.png")
        outcomes = returned["outcomes"]
        row_ids = [returned["row_ids"][row] for row in outcomes["row"]]
        with atomic_write(folder.path / "outcomes.parquet", pa.ArrowException) as unfinished:
            pq.write_table(pa.table({"row": outcomes["row"], "row_id": row_ids, **outcomes}), unfinished)
    folder.write_result(result)
    print(f"\n{result_table(result, history)}", flush=True)
    result = replace(result, tracked=track(config, folder, result))
    folder.write_result(result)
    return FinishedRun(folder, result)


def track(config: ExperimentConfig, folder: RunFolder, result: RunResult) -> bool:
    """Gives the tracking server all that it lacks of a run, and tells whether it has everything.

    A model that was not evaluated on the test split is not exported.
    """
    uri, run_id = result.mlflow.uri, result.mlflow.run_id
    files = [folder.path / name for name in _ARTIFACTS if (folder.path / name).is_file()]
    texts = {"config.yaml": config_text(config), "split_digest.txt": f"{result.split_digest}\n"}
    texts["task_card.json"] = json.dumps(result.task_card, indent=2, ensure_ascii=False)
    try:
        mlflow_tracking.log_result(uri, run_id, result, folder.history(), files, texts)
        if result.test is not None:
            weights, example = folder.path / "model.safetensors", torch.zeros(2, *result.image_shape)
            network = NetworkDescription.of(config.model, result.num_classes)
            model = PortableModel(network, read_weights(weights)).build()
            mlflow_tracking.log_model(uri, run_id, model, example, weights=weights, step=result.best_epoch)
        mlflow_tracking.end_run(uri, run_id, status="FINISHED")
    except mlflow_tracking.TrackingError as error:
        print(f"warning: {error} {folder.path} holds everything.", file=sys.stderr)
        return False
    return True


def _save_figure(figure: "Figure", path: Path) -> None:
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, format=path.suffix[1:])


def write_backbone(run: FinishedRun, command: str) -> Path:
    """Writes a finished run's network without its head, and its card beside it."""
    folder, config = run.folder, run.folder.config()
    model = config.model
    classifier = NetworkDescription.of(model, run.result.num_classes).build()
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
    attack, eval_attack, test = config.train_attack, config.eval_attack, result.test
    rows = {
        "Network": f"{config.model.backbone}, {parameters:,} parameters without its head",
        "Data": f"{config.data.task}: {result.train_images:,} training, {result.val_images:,} validation, "
        f"{result.test_images or 0:,} test images (classes {some(result.class_names, 20)})",
        "Input": f"images in [0, 1], mean {config.model.mean}, std {config.model.std}",
        "Objective": f"{config.method.name}, beta {config.method.trades_beta:g}, from random weights",
        "Threat model": f"{config.threat_model.norm}, epsilon {config.threat_model.epsilon:g}",
        "Training attack": f"PGD, {attack.num_steps} steps of {attack.step_size:g}, "
        f"random start: {attack.random_start}",
        "Epochs": f"{result.stopped_epoch} run; chosen on validation: epoch {result.best_epoch}",
        "Optimiser": f"SGD, lr {config.optimization.lr:g} ({config.schedule.name}), momentum "
        f"{config.optimization.momentum:g}, weight decay {config.optimization.weight_decay:g}, global batch "
        f"{config.optimization.global_batch_size}, seed {config.seed}",
        "Test natural accuracy": _accuracy(test.natural if test else None),
        f"Test robust accuracy (PGD, {eval_attack.num_steps} steps of {eval_attack.step_size:g})": _accuracy(
            test.robust if test else None
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
