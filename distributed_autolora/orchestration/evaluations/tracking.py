"""An evaluation in MLflow: its run, metrics, tags and files, and the model in the registry."""

import json
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
from distributed_autolora.models import save_weights
from distributed_autolora.models.export import WEIGHTS_FILE
from distributed_autolora.orchestration import mlflow_tracking
from distributed_autolora.orchestration.cluster.processes import uninterrupted
from distributed_autolora.orchestration.evaluations.plan import Plan, task_name
from distributed_autolora.records import Evaluation, TrackedRun


@contextmanager
def tracked_run(plan: Plan) -> Iterator[TrackedRun]:
    """Yields the MLflow run that an evaluation is logged to: that of the evaluated run, else an open one of its own.

    Raises:
        UserError: for a tracking URI that cannot be used.
    """
    request, run = plan.request, plan.found.run
    trained = None if run is None else run.result().mlflow
    if trained is not None and request.mlflow_uri in (None, trained.uri):
        yield trained
        return
    known = plan.folder.read_note("mlflow") or {}
    uri = request.mlflow_uri or known.get("uri") or mlflow_tracking.default_tracking_uri(request.home())
    run_id = mlflow_tracking.open_run(
        uri=uri,
        experiment=RunConfig().mlflow_experiment,
        run_name=f"evaluation of {plan.found.name}",
        params={"model": request.model, "data": plan.task.data_folder, "attacks": request.attacks},
        tags={"task": task_name(plan.table), "kind": "evaluation"},
        run_id=known.get("run_id") if uri == known.get("uri") else None,
        home=request.home(),
        data=mlflow_tracking.DataInput(
            task_name(plan.table) or "images", plan.task.data_digest, plan.task.data_folder, "evaluation"
        ),
    )
    plan.folder.write_note("mlflow", {"uri": uri, "run_id": run_id})
    status: Literal["FINISHED", "KILLED", "FAILED"] = "FAILED"
    try:
        yield TrackedRun(uri, run_id)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        with uninterrupted():
            mlflow_tracking.finish_run(uri, run_id, status=status)


def track(plan: Plan, evaluation: Evaluation, files: list[Path], tracked: TrackedRun) -> None:
    """Logs metrics, tags and files of an evaluation, and registers the model if that was asked for."""
    metrics, tags = _metrics(plan, evaluation), _tags(plan, evaluation)
    try:
        mlflow_tracking.log_evaluation(tracked.uri, tracked.run_id, metrics=metrics, tags=tags, files=files)
    except mlflow_tracking.TrackingError as error:
        print(f"warning: {error} {plan.folder.path} holds everything.", file=sys.stderr)
    if plan.request.register is None:
        return
    if plan.found.run is None:
        model, example = plan.found.model, next(plan.batches(2))
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder, WEIGHTS_FILE)
            save_weights(model.weights, weights, model.metadata())
            mlflow_tracking.log_model(
                tracked.uri, tracked.run_id, model.build(), torch.cat([example] * 2), weights=weights
            )
    tags = {name: f"{value:.4f}" for name, value in metrics.items() if "accuracy" in name} | tags
    tags = {name.replace("/", "."): text for name, text in tags.items()}
    version = mlflow_tracking.register_model(tracked.uri, tracked.run_id, plan.request.register, tags)
    print_line(f"Registered in MLflow as models:/{plan.request.register}/{version} ({tracked.uri}).")


def _prefix(plan: Plan) -> str:
    return f"evaluation{plan.variant.replace('-', '_')}"


def _metrics(plan: Plan, evaluation: Evaluation) -> dict[str, float]:
    metrics = {name: count.accuracy for name, count in evaluation.accuracies().items()}
    metrics |= {"seconds/chunks": evaluation.chunk_seconds, "seconds/wall": evaluation.wall_seconds}
    if evaluation.sanity:
        statuses = [check.status for check in evaluation.sanity]
        metrics |= {f"sanity/{status}": float(statuses.count(status)) for status in ("PASS", "WARN", "FAIL")}
    if corrupted := evaluation.corruption_accuracies():
        metrics["corruption_accuracy"] = fmean(corrupted.values())
        metrics |= {f"corruption_accuracy/{name}": accuracy for name, accuracy in corrupted.items()}
    if evaluation.curve is not None:
        metrics["expected_robustness"] = evaluation.curve.expected_robustness
    return {f"{_prefix(plan)}/{name}": value for name, value in metrics.items()}


def _tags(plan: Plan, evaluation: Evaluation) -> dict[str, str]:
    tags = {attack.name: attack.label for attack in evaluation.results()}
    tags |= {
        "norm": evaluation.norm,
        "epsilon": f"{evaluation.epsilon:.6g}",
        "package_versions": json.dumps(evaluation.package_versions),
    }
    if evaluation.sanity:
        findings = [f"{check.status} {check.name}" for check in evaluation.sanity if check.status != "PASS"]
        tags["sanity"] = "; ".join(findings) or "all PASS"
    named = {f"{_prefix(plan)}.{name}": text for name, text in tags.items()}
    # The run's own checks saw fewer images: the tag that runs are filtered by does not contradict its evaluation.
    masked = any(check.name == "masking" and check.status != "PASS" for check in evaluation.sanity)
    return {**named, "masking": "warned"} if masked else named
