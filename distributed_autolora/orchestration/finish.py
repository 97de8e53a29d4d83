"""What is left when training is done: the deployable model, the result, figures, and the tracking server's share."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

import torch

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.models import Classifier, build, read_weights, save_weights
from distributed_autolora.orchestration import mlflow_tracking
from distributed_autolora.orchestration.run_folder import RunFolder, config_text, write_json
from distributed_autolora.reporting.figures import curves_figure, samples_figure
from distributed_autolora.reporting.terminal import result_table

_ARTIFACTS = ("model.safetensors", "curves.png", "samples.png")


@dataclass(frozen=True)
class FinishedRun:
    """A run that has its result."""

    folder: RunFolder
    result: dict[str, Any]


def finish(
    config: ExperimentConfig, folder: RunFolder, returned: dict[str, Any], mlflow: dict[str, str]
) -> FinishedRun:
    """Writes everything that a finished run leaves, and prints its table.

    The result is written when all that it needs is there; what the tracking server could not take then is
    given to it by the same command.

    Args:
        config: the effective config.
        folder: the run's folder, held by this process.
        returned: what the first worker returned.
        mlflow: "uri" and "run_id" of the tracked run.
    """
    history, samples = returned["history"], returned["samples"]
    result = {
        "name": folder.name,
        "recipe": config.recipe,
        "seed": config.seed,
        "config_digest": config.digest(),
        **returned["summary"],
        "image_shape": list(samples["x"].shape[1:]),
        "seconds": {"training": sum(record["seconds/epoch"] for record in history)},
        "mlflow": mlflow,
        "folder": str(folder.path),
    }
    write_json(folder.history_file, history)
    _save_model(config, folder, returned["weights"], result["num_classes"])
    curves_figure(history, result).savefig(folder.path / "curves.png")
    samples_figure(samples, result["class_names"], result["epsilon"]).savefig(folder.path / "samples.png")
    result["tracked"] = False
    write_json(folder.path / "result.json", result)
    print(f"\n{result_table(result, history)}", flush=True)
    result["tracked"] = track(config, folder, result)
    write_json(folder.path / "result.json", result)
    return FinishedRun(folder, result)


def track(config: ExperimentConfig, folder: RunFolder, result: dict[str, Any]) -> bool:
    """Gives the tracking server all that it lacks of a run, and tells whether it has everything.

    Args:
        config: the effective config.
        folder: the run's folder, with all files but the result.
        result: the run's result.
    """
    uri, run_id = result["mlflow"]["uri"], result["mlflow"]["run_id"]
    artifacts: dict[str, Any] = {name: folder.path / name for name in _ARTIFACTS}
    artifacts["config.yaml"] = mlflow_tracking.masked(config_text(config))
    artifacts["split_digest.txt"] = f"{result['split_digest']}\n"
    example = torch.zeros(2, *result["image_shape"])
    tracked = (
        mlflow_tracking.log_result(uri, run_id, result, folder.history(), artifacts)
        and mlflow_tracking.log_model(
            uri, run_id, load_deployable(config, folder, result["num_classes"]), example, step=result["best_epoch"]
        )
        and mlflow_tracking.finish_run(uri, run_id, status="FINISHED")
    )
    if not tracked:
        print(
            f"warning: the MLflow server is away; {folder.path} holds everything. "
            "The same command writes what is missing there once the server is back.",
            file=sys.stderr,
        )
    return tracked


def load_deployable(config: ExperimentConfig, folder: RunFolder, num_classes: int) -> Classifier:
    """Returns the model that a finished run deploys, in eval mode."""
    classifier = _plain_classifier(config, num_classes)
    classifier.backbone.load_state_dict(read_weights(folder.path / "model.safetensors"))
    return classifier.eval()


def _plain_classifier(config: ExperimentConfig, num_classes: int) -> Classifier:
    model = config.model
    return build(model.backbone, num_classes, mean=model.mean, std=model.std, input_size=model.input_size)


def _save_model(config: ExperimentConfig, folder: RunFolder, weights: dict[str, Any], num_classes: int) -> None:
    """Writes backbone and head, without the low-rank branch, as safetensors."""
    classifier = _plain_classifier(config, num_classes)
    classifier.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    model = config.model
    metadata = {
        "backbone": model.backbone,
        "num_classes": str(num_classes),
        "mean": json.dumps(model.mean),
        "std": json.dumps(model.std),
        "input_size": json.dumps(model.input_size),
    }
    save_weights(classifier.backbone.state_dict(), folder.path / "model.safetensors", metadata)
