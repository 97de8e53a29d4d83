"""Opening and closing the MLflow run of a training run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distributed_autolora.console import switch
from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.mlflow_tracking.connection import (
    LONG_S,
    OPENING_S,
    QUICK_S,
    TrackingError,
    connect,
    failures,
    is_server,
    problem_of,
    requests_to,
    timeouts,
    truncated,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_PARAM_LENGTH = 6000
_PARAMS_PER_BATCH = 100
_DIGEST_LENGTH = 36
"""Characters that MLflow keeps of a dataset's digest."""


@dataclass(frozen=True)
class DataInput:
    """The images that a run reads, for its page: name, SHA-256, folder or URI, and what they are read for."""

    name: str
    digest: str
    location: str
    context: Literal["training", "evaluation"]


def open_run(
    *,
    uri: str,
    experiment: str,
    run_name: str,
    params: dict[str, Any],
    tags: dict[str, str],
    run_id: str | None,
    home: Path,
    data: DataInput | None = None,
) -> str:
    """Creates an MLflow run, or continues one, and returns its id. The run is then in status RUNNING.

    Args:
        params: flat parameters; those that the run already has stay as they are.
        home: output folder; without a server, artifacts go to its `mlartifacts`.

    Raises:
        UserError: for a URI that cannot be used, a server that does not answer, or a run that it does not know.
    """
    client = reach_store(uri)
    with timeouts(LONG_S, retries=2):
        try:
            if run_id is None:
                from mlflow.tracking.context.registry import resolve_tags

                experiment_id = _experiment_id(client, uri, experiment, home)
                run = client.create_run(experiment_id, tags=resolve_tags(tags), run_name=run_name)
            else:
                run = _known_run(client, uri, run_id)
                client.update_run(run_id, status="RUNNING")
            _log_params(client, run, params)
            if data is not None and not (run.inputs and run.inputs.dataset_inputs):
                _log_data(client, run.info.run_id, data)
            return str(run.info.run_id)
        except failures() as error:
            raise UserError(
                f"MLflow at {uri} refused the run ({problem_of(error)}): fix that there, or change --mlflow-uri."
            ) from None


def finish_run(uri: str, run_id: str, *, status: Literal["FINISHED", "FAILED", "KILLED"]) -> bool:
    """Closes the run if that can be done, and tells whether it could; never raises for a server that is away."""
    try:
        end_run(uri, run_id, status=status)
    except TrackingError:
        return False
    return True


def end_run(uri: str, run_id: str, *, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
    """Closes the run.

    Raises:
        TrackingError: when that cannot be done.
    """
    with requests_to(uri, QUICK_S):
        connect(uri).set_terminated(run_id, status)


def reach_store(uri: str) -> MlflowClient:
    """Returns a client of a store that answered; a new database is set up.

    Raises:
        UserError: for a URI that cannot be used, or a store that does not answer.
    """
    with timeouts(OPENING_S):
        try:
            client = connect(uri)
            client.search_experiments(max_results=1)
        except failures() as error:
            raise UserError(
                f"MLflow at {uri} cannot be used ({problem_of(error)}): start it, or change --mlflow-uri."
            ) from None
    return client


def _log_params(client: MlflowClient, run: Run, params: dict[str, Any]) -> None:
    from mlflow.entities import Param

    known = run.data.params
    missing = [Param(key, truncated(str(value), _PARAM_LENGTH)) for key, value in params.items() if key not in known]
    for start in range(0, len(missing), _PARAMS_PER_BATCH):
        client.log_batch(run.info.run_id, params=missing[start : start + _PARAMS_PER_BATCH])


def _log_data(client: MlflowClient, run_id: str, data: DataInput) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    scheme, colon, _ = data.location.partition("://")
    source = json.dumps({"uri": data.location})
    digest = data.digest[:_DIGEST_LENGTH]
    dataset = Dataset(data.name, digest, scheme if colon else "local", source)
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", data.context)])])


def _experiment_id(client: MlflowClient, uri: str, name: str, home: Path) -> str:
    """Returns the experiment's id; another process may create it at the same time."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        location = None if is_server(uri) else (home.absolute() / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f'MLflow at {uri}: experiment "{name}" was deleted; restore it or change run.mlflow_experiment.'
        )
    return str(found.experiment_id)


def _known_run(client: MlflowClient, uri: str, run_id: str) -> Run:
    from mlflow.exceptions import MlflowException

    afresh = f"start afresh (a run: {switch('fresh')}, a study: another name)"
    hint = f"point --mlflow-uri to the server that has it, or {afresh}."
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise UserError(f"MLflow at {uri} does not know the run {run_id}: {hint}") from None
    if run.info.lifecycle_stage == "deleted":
        raise UserError(f"The run {run_id} was deleted from MLflow at {uri}: {hint}")
    return run
