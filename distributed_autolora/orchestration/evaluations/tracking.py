"""An evaluation in MLflow: its run, metrics, tags and files, and the model in the registry."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Literal

import torch

from distributed_autolora.config import RunConfig
from distributed_autolora.console import print_line
from distributed_autolora.data.catalog import lasting_location
from distributed_autolora.errors import UserError
from distributed_autolora.models import save_weights
from distributed_autolora.models.export import WEIGHTS_FILE
from distributed_autolora.orchestration import mlflow_tracking
from distributed_autolora.orchestration.cluster.processes import uninterrupted
from distributed_autolora.orchestration.evaluations.plan import Plan, task_name
from distributed_autolora.records import Evaluation, TrackedRun
from distributed_autolora.reporting.evaluation import evaluation_table


@contextmanager
def tracked_run(plan: Plan) -> Iterator[TrackedRun | None]:
    """Yields the evaluation's own MLflow run, open; its parent is the evaluated run's, if both are in one store.

    None where that run's store is away: the evaluation does not need it, and the same command logs it later.

    Raises:
        UserError: for a tracking URI that cannot be used.
    """
    parent = _parent(plan)
    try:
        tracked = _open_run(plan, parent)
    except UserError as error:
        if parent is None:
            raise
        yield None
        print(f"warning: {error} The same command then logs {plan.folder.path}.", file=sys.stderr)
        return
    status: Literal["FINISHED", "KILLED", "FAILED"] = "FAILED"
    try:
        yield tracked
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        with uninterrupted():
            mlflow_tracking.finish_run(tracked.uri, tracked.run_id, status=status)


def _parent(plan: Plan) -> TrackedRun | None:
    """Returns the MLflow run of the training, if the evaluation goes to the same store."""
    trained = None if plan.found.run is None else plan.found.run.result().mlflow
    return trained if trained is not None and plan.request.mlflow_uri in (None, trained.uri) else None


def _open_run(plan: Plan, parent: TrackedRun | None) -> TrackedRun:
    request, task = plan.request, plan.task
    known = plan.folder.read_note("mlflow") or {}
    default = parent.uri if parent else mlflow_tracking.default_tracking_uri(request.home())
    uri = request.mlflow_uri or known.get("uri") or default
    name, location = task_name(plan.table), lasting_location(task.data_folder)
    run_id = mlflow_tracking.open_run(
        uri=uri,
        experiment=(plan.found.run.config().run if plan.found.run else RunConfig()).mlflow_experiment,
        run_name=f"evaluation{plan.variant} of {plan.found.name}",
        params={
            "model": request.model,
            "data": location,
            "attacks": request.attacks,
            "norm": task.threat_model.norm,
            "epsilon": f"{task.threat_model.epsilon:.6g}",
            "images": len(task.rows),
            "seed": request.seed,
        },
        tags={"task": name, "kind": "evaluation"} | ({mlflow_tracking.PARENT: parent.run_id} if parent else {}),
        run_id=known.get("run_id") if uri == known.get("uri") else None,
        home=request.home(),
        data=mlflow_tracking.DataInput(name or "images", task.data_digest, location, "evaluation"),
    )
    plan.folder.write_note("mlflow", {"uri": uri, "run_id": run_id})
    return TrackedRun(uri, run_id)


def track(plan: Plan, evaluation: Evaluation, files: list[Path], tracked: TrackedRun | None) -> None:
    """Logs metrics, description and files of an evaluation, and registers the model if that was asked for."""
    metrics, parent = _metrics(evaluation), _parent(plan)
    if tracked is not None:
        try:
            mlflow_tracking.log_evaluation(
                tracked.uri, tracked.run_id, metrics=metrics, tags=_tags(evaluation), files=files
            )
            if parent and any(check.name == "masking" and check.status != "PASS" for check in evaluation.sanity):
                # The run's own checks saw fewer images: the tag that runs are filtered by does not contradict this one.
                warned = {"masking": "warned"}
                mlflow_tracking.log_evaluation(parent.uri, parent.run_id, metrics={}, tags=warned, files=[])
        except mlflow_tracking.TrackingError as error:
            print(f"warning: {error} {plan.folder.path} holds everything.", file=sys.stderr)
    holder = parent or tracked
    if plan.request.register is None or holder is None:
        return
    if holder == tracked:
        model, example = plan.found.model, next(plan.batches(2))
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder, WEIGHTS_FILE)
            save_weights(model.weights, weights, model.metadata())
            mlflow_tracking.log_model(
                holder.uri, holder.run_id, model.build(), torch.cat([example] * 2), weights=weights
            )
    results = {name: f"{value:.4f}" for name, value in metrics.items()} | _labels(evaluation)
    tags = {name.replace("/", "."): text for name, text in results.items()}
    version = mlflow_tracking.register_model(holder.uri, holder.run_id, plan.request.register, tags)
    print_line(f"Registered in MLflow as models:/{plan.request.register}/{version} ({holder.uri}).")


def _metrics(evaluation: Evaluation) -> dict[str, float]:
    metrics = {name: count.accuracy for name, count in evaluation.accuracies().items()}
    if corrupted := evaluation.corruption_accuracies():
        metrics["corruption_accuracy"] = fmean(corrupted.values())
        metrics |= {f"corruption_accuracy/{name}": accuracy for name, accuracy in corrupted.items()}
    if evaluation.curve is not None:
        metrics["expected_robustness"] = evaluation.curve.expected_robustness
    return {f"evaluation/{name}": value for name, value in metrics.items()}


def _tags(evaluation: Evaluation) -> dict[str, str]:
    tags = {"mlflow.note.content": f"```\n{evaluation_table(evaluation)}\n```"}
    if evaluation.sanity:
        findings = [f"{check.status} {check.name}" for check in evaluation.sanity if check.status != "PASS"]
        tags["sanity"] = "; ".join(findings) or "all PASS"
    return tags


def _labels(evaluation: Evaluation) -> dict[str, str]:
    """Returns what a registered model's accuracies are of: the version of a model has no parameters."""
    of = {"norm": evaluation.norm, "epsilon": f"{evaluation.epsilon:.6g}", "images": str(evaluation.test_images)}
    return {f"evaluation/{name}": text for name, text in of.items()} | {
        f"evaluation/{attack.name}": attack.label for attack in evaluation.results()
    }
