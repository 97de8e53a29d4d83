"""What evaluations and studies leave in MLflow: metrics, files and tags, and the model in the registry."""

from __future__ import annotations

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
from distributed_autolora.orchestration.mlflow_tracking.metrics import legal_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARENT = "mlflow.parentRunId"
"""Tag by which MLflow shows a run below another."""
_FOLDER = "evaluation"
_TAG_LENGTH = 500


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
                f"MLflow at {uri} has no model {model_uri} ({problem_of(error)}). Check its name and run.mlflow_uri."
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
    """Writes metrics, tags and files (into "evaluation") of an evaluation to a run; a file replaces its older version.

    Raises:
        TrackingError: when not everything was written.
    """
    with requests_to(uri, LONG_S, retries=2):
        client = connect(uri)
        known = client.get_run(run_id).data.metrics
        for name, value in metrics.items():
            if known.get(legal_name(name)) != value:
                client.log_metric(run_id, legal_name(name), value)
        for name, text in tags.items():
            client.set_tag(run_id, name, truncated(text, _TAG_LENGTH))
        for file in files:
            client.log_artifact(run_id, str(file), _FOLDER)


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
    outputs = client.get_run(run_id).outputs
    models = outputs.model_outputs if outputs is not None else []
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
