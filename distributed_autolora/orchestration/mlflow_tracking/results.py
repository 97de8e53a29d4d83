"""What runs, evaluations and studies leave in MLflow: metrics, files, descriptions, models and their registry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.mlflow_tracking.connection import (
    LONG_S,
    connect,
    failures,
    problem_of,
    requests_to,
    timeouts,
    truncated,
)
from distributed_autolora.orchestration.mlflow_tracking.metrics import MetricWriter, metric_name
from distributed_autolora.records import EpochRecord, RunResult
from distributed_autolora.reporting.masking import masking_status
from distributed_autolora.reporting.run.mlflow_description import run_description

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from torch import Tensor, nn

PARENT = "mlflow.parentRunId"
"""Tag by which MLflow shows a run below another."""
_TAG_LENGTH = 8000


def log_result(
    uri: str, run_id: str, result: RunResult, history: Sequence[EpochRecord], files: list[Path], texts: dict[str, str]
) -> None:
    """Writes all that a finished run leaves: missing epochs, test metrics, files and texts by the files' names, a
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
    return {
        metric_name(f"{prefix}/{name}"): count.accuracy
        for prefix, part in (("test", result.test), ("test/linear_head", result.linear_head))
        if part is not None
        for name, count in part.by_name(result.attack).items()
    }


def _has_model(client: MlflowClient, run_id: str) -> bool:
    """Tells whether a complete model is there; an attempt that failed leaves an incomplete one."""
    from mlflow.entities.logged_model_status import LoggedModelStatus

    found = (client.get_logged_model(model.model_id).status for model in _models(client, run_id))
    return LoggedModelStatus.READY in found


def _models(client: MlflowClient, run_id: str) -> list[Any]:
    outputs = client.get_run(run_id).outputs
    return list(outputs.model_outputs) if outputs is not None else []


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


def download_weights(uri: str, model_uri: str, folder: Path) -> Path:
    """Downloads the weights file of a model that MLflow holds.

    Args:
        model_uri: models:/NAME/VERSION, models:/ID, runs:/RUN_ID/model or runs:/RUN_ID/model.safetensors.

    Raises:
        UserError: when there is no such model, or it has no weights file.
    """
    with timeouts(LONG_S, retries=2):
        try:
            connect(uri)
            import mlflow

            path = mlflow.artifacts.download_artifacts(artifact_uri=model_uri, tracking_uri=uri, dst_path=str(folder))
        except failures() as error:
            raise UserError(
                f"MLflow at {uri} has no model {model_uri} ({problem_of(error)}). Check its name and --mlflow-uri."
            ) from None
    found = [Path(path)] if Path(path).is_file() else sorted(Path(path).rglob("*.safetensors"))
    if len(found) != 1:
        raise UserError(
            f"The model {model_uri} holds {len(found)} .safetensors files, not one. Give --model the run, its "
            "model.safetensors, or runs:/RUN_ID/model.safetensors."
        )
    return found[0]


def log_evaluation(
    uri: str, run_id: str, *, metrics: dict[str, float], tags: dict[str, str], files: list[Path]
) -> None:
    """Writes metrics, tags and files of an evaluation to its run; a file replaces its older version.

    Raises:
        TrackingError: when not everything was written.
    """
    with requests_to(uri, LONG_S, retries=2):
        client = connect(uri)
        known = client.get_run(run_id).data.metrics
        for name, value in metrics.items():
            if known.get(metric_name(name)) != value:
                client.log_metric(run_id, metric_name(name), value)
        for name, text in tags.items():
            client.set_tag(run_id, name, truncated(text, _TAG_LENGTH))
        for file in files:
            client.log_artifact(run_id, str(file))


def log_study(uri: str, run_id: str, report: Path, note: str) -> None:
    """Writes the files of a report, which replace older ones, and the description of a study's own run.

    Raises:
        TrackingError: when not everything was written.
    """
    with requests_to(uri, LONG_S, retries=2):
        client = connect(uri)
        client.log_artifacts(run_id, str(report.parent), "report")
        client.set_tag(run_id, "mlflow.note.content", note)


def register_model(uri: str, run_id: str, name: str, tags: dict[str, str]) -> str:
    """Files a run's logged model under a name in the registry and returns its version; one model gets one version.

    Raises:
        UserError: when the run has no model, or MLflow refuses.
    """
    with timeouts(LONG_S, retries=2):
        try:
            client = connect(uri)
            import mlflow

            # A client alone looks for the logged model in the global store.
            mlflow.set_tracking_uri(uri)
            return _register(client, uri, run_id, name, tags)
        except failures() as error:
            raise UserError(
                f'MLflow at {uri} did not register "{name}": {problem_of(error).rstrip(".")}. The same command '
                "tries again, or takes another name with --register."
            ) from None


def _register(client: MlflowClient, uri: str, run_id: str, name: str, tags: dict[str, str]) -> str:
    models = _models(client, run_id)
    if not models:
        raise UserError(
            f"The run {run_id} at {uri} has no logged model to register: give the file of its weights as --model."
        )
    model = client.get_logged_model(models[-1].model_id)
    _create_name(client, name)
    versions = client.search_model_versions(f"name = '{name}'")
    version = next((one.version for one in versions if one.source in (model.model_uri, model.artifact_location)), None)
    if version is None:
        created: Any = client.create_model_version(
            name, source=model.model_uri, run_id=run_id, model_id=model.model_id, tags=tags
        )
        version = created.version
    for key, text in tags.items():
        client.set_model_version_tag(name, str(version), key, text)
    return str(version)


def _create_name(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
