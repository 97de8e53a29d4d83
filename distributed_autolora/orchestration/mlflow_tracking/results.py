"""What a finished run leaves in MLflow: test metrics, files, a description, and the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distributed_autolora.orchestration.mlflow_tracking.connection import LONG_S, connect, requests_to, truncated
from distributed_autolora.orchestration.mlflow_tracking.metrics import MetricWriter, legal_name
from distributed_autolora.records import EpochRecord, RunResult
from distributed_autolora.reporting.masking import masking_status
from distributed_autolora.reporting.run.mlflow_description import run_description

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from torch import Tensor, nn

_TAG_LENGTH = 8000


def log_result(
    uri: str, run_id: str, result: RunResult, history: Sequence[EpochRecord], files: list[Path], texts: dict[str, str]
) -> None:
    """Writes all that a finished run leaves: missing epochs, test metrics, cost, files and texts by the files' names, a
    description, and the tag `masking`.

    Calling it again writes no metric twice and replaces files. Test metrics carry the step of the deployed epoch.

    Raises:
        TrackingError: when not everything was written.
    """
    MetricWriter(uri, run_id).send(history)
    final = _result_metrics(result)
    with requests_to(uri, LONG_S, retries=2):
        client = connect(uri)
        known = client.get_run(run_id).data.metrics
        for name, value in final.items():
            if name not in known:
                client.log_metric(run_id, name, value, step=result.best_epoch)
        for file in files:
            client.log_artifact(run_id, str(file))
        for name, text in texts.items():
            client.log_text(run_id, text, name)
        client.set_tag(run_id, "masking", masking_status(result.masking))
        client.set_tag(run_id, "mlflow.note.content", truncated(run_description(result, history), _TAG_LENGTH))


def log_model(
    uri: str, run_id: str, model: nn.Module, example: Tensor, *, weights: Path | None = None, step: int = 0
) -> None:
    """Stores a model that `mlflow.pytorch.load_model` reads without this package; does nothing when the run has one.

    Args:
        model: takes float images [n, C, H, W] in [0, 1]; exported in eval mode on the CPU.
        example: such images, at least 2: with 1 the exported graph would only take batches of 1.

    Raises:
        TrackingError: when the run does not have it now.
        ValueError: for an example of fewer than 2 images.
    """
    if len(example) < 2:
        raise ValueError("the example needs at least 2 images")
    with requests_to(uri, LONG_S, retries=2):
        if not _has_model(connect(uri), run_id):
            _export(uri, run_id, model, example, weights, step)


def _result_metrics(result: RunResult) -> dict[str, float]:
    cost = result.cost
    metrics = {
        "seconds/training/total": cost.seconds,
        "cost/worker_seconds": cost.worker_seconds,
        "cost/forward_passes": float(cost.forward_passes),
        "cost/backward_passes": float(cost.backward_passes),
    }
    for prefix, part in (("test", result.test), ("test/linear_head", result.linear_head)):
        for name, count in part.by_name(result.attack).items() if part else ():
            metrics[legal_name(f"{prefix}/{name}")] = count.accuracy
    return metrics


def _has_model(client: MlflowClient, run_id: str) -> bool:
    """Tells whether a complete model is there; an attempt that failed leaves an incomplete one."""
    from mlflow.entities.logged_model_status import LoggedModelStatus

    outputs = client.get_run(run_id).outputs
    models = outputs.model_outputs if outputs is not None else []
    return any(client.get_logged_model(model.model_id).status == LoggedModelStatus.READY for model in models)


def _export(uri: str, run_id: str, model: nn.Module, example: Tensor, weights: Path | None, step: int) -> None:
    import copy

    import mlflow
    import mlflow.pytorch
    import numpy
    import torch

    status = connect(uri).get_run(run_id).info.status
    mlflow.set_tracking_uri(uri)
    # Only within an active run does the model go to the run's experiment and artifacts. Leaving it ends the run.
    with mlflow.start_run(run_id=run_id):
        mlflow.pytorch.log_model(
            copy.deepcopy(model).cpu().eval(),
            name="model",
            step=step,
            input_example=example.detach().cpu().numpy(),
            extra_files=None if weights is None else [str(weights)],
            pip_requirements=[
                f"mlflow=={mlflow.__version__}",
                f"torch=={torch.__version__.partition('+')[0]}",
                f"numpy=={numpy.__version__}",
            ],
        )
    connect(uri).update_run(run_id, status=status)
