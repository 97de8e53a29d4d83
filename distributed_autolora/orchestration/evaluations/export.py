"""What an evaluation exports: model files, model card, RobustBench entry; and what it logs to MLflow."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch

from distributed_autolora.config import RunConfig
from distributed_autolora.console import print_line
from distributed_autolora.files.json_files import write_json, write_text
from distributed_autolora.models import save_weights
from distributed_autolora.models.export import WEIGHTS_FILE, export_model
from distributed_autolora.orchestration import mlflow_tracking
from distributed_autolora.orchestration.cluster.processes import uninterrupted
from distributed_autolora.orchestration.evaluations.folder import OUTCOMES_FILE, RESULT_FILE
from distributed_autolora.orchestration.evaluations.plan import Plan, task_name
from distributed_autolora.reporting.model_card import ModelFacts, model_card
from distributed_autolora.reporting.robustbench import PaperEntry, robustbench_entry

CARD_FILE, ENTRY_FILE = "model_card.md", "robustbench.json"
_EXPORT = "export"
"""Name of the note of an export that was checked."""
_AUTOLORA = PaperEntry(
    link="https://arxiv.org/abs/2310.01818",
    name="AutoLoRa: A Parameter-Free Automated Robust Fine-Tuning Framework",
    authors="Xilie Xu, Jingfeng Zhang, Mohan Kankanhalli",
    venue="ICLR 2024",
)
_UNPUBLISHED = PaperEntry(link="", name="", authors="", venue="Unpublished")


class Tracking:
    """The MLflow run that an evaluation is logged to: that of the evaluated run, else one of its own.

    Args:
        plan: the evaluation.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._opened = False
        self.uri, self.run_id = "", ""

    def __enter__(self) -> Tracking:
        """Finds the run, or opens one; one of its own that an earlier attempt left is opened again.

        Raises:
            UserError: for a tracking URI that cannot be used.
        """
        request, found = self._plan.request, self._plan.found
        tracked = None if found.run is None else found.run.result().mlflow
        if tracked and request.mlflow_uri in (None, tracked.uri):
            self.uri, self.run_id = tracked.uri, tracked.run_id
            return self
        known = self._plan.folder.read_note("mlflow") or {}
        self.uri = request.mlflow_uri or known.get("uri") or mlflow_tracking.default_tracking_uri(request.home())
        self.run_id = mlflow_tracking.open_run(
            uri=self.uri,
            experiment=RunConfig().mlflow_experiment,
            run_name=f"evaluation of {found.name}",
            params={"model": request.model, "data": self._plan.task.data_folder, "attacks": request.attacks},
            tags={"task": task_name(self._plan.table), "kind": "evaluation"},
            run_id=known.get("run_id") if self.uri == known.get("uri") else None,
            home=request.home(),
        )
        self._opened = True
        self._plan.folder.write_note("mlflow", {"uri": self.uri, "run_id": self.run_id})
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Closes a run that this evaluation opened."""
        if not self._opened:
            return
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        status: Literal["FINISHED", "KILLED", "FAILED"] = "KILLED" if interrupted else "FAILED"
        with uninterrupted():
            mlflow_tracking.finish_run(self.uri, self.run_id, status="FINISHED" if kind is None else status)


def export(plan: Plan, result: dict[str, Any], tracking: Tracking) -> None:
    """Writes the exports that were asked for, and logs the evaluation to MLflow.

    Args:
        plan: the evaluation.
        result: of `evaluation.json`.
        tracking: entered.

    Raises:
        RunFailedError: when a reloaded export computes something else than the model.
        UserError: when the model cannot be registered.
    """
    folder = plan.folder.path
    files = [folder / RESULT_FILE, folder / OUTCOMES_FILE]
    if plan.request.export:
        files += _write_files(plan, result)
        print_line(f"Exported: {', '.join(file.name for file in files[2:])}")
    try:
        mlflow_tracking.log_evaluation(
            tracking.uri, tracking.run_id, metrics=_metrics(plan, result), tags=_tags(plan, result), files=files
        )
    except mlflow_tracking.TrackingError as error:
        print(f"warning: {error} {folder} holds everything.", file=sys.stderr)
    if plan.request.register is not None:
        _register(plan, plan.request.register, result, tracking)


def _write_files(plan: Plan, result: dict[str, Any]) -> list[Path]:
    folder = plan.folder.path
    differences = _checked_export(plan)
    facts = _facts(plan, differences)
    write_text(folder / CARD_FILE, model_card(result, facts))
    files = [*(folder / name for name in differences), folder / CARD_FILE]
    entry = robustbench_entry(result, facts, _paper(plan))
    if entry is not None:
        write_json(folder / ENTRY_FILE, entry)
        files.append(folder / ENTRY_FILE)
    return files


def _checked_export(plan: Plan) -> dict[str, float]:
    """Exports the model, unless the folder has the very files that an earlier attempt wrote and checked.

    The check passes all tracked images through both files and the model, on one thread: minutes where they are large.
    """
    known = plan.folder.read_note(_EXPORT) or {"differences": {}, "sha256": None}
    if known["sha256"] != _digests(plan.folder.path, known["differences"]):
        differences = export_model(plan.found.model, plan.folder.path, plan.batches())
        known = {"differences": differences, "sha256": _digests(plan.folder.path, differences)}
        plan.folder.write_note(_EXPORT, known)
    return dict(known["differences"])


def _digests(folder: Path, names: Iterable[str]) -> dict[str, str] | None:
    """Returns the SHA-256 of files by name; None where one is missing."""
    try:
        return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    except OSError:
        return None


def _facts(plan: Plan, differences: dict[str, float]) -> ModelFacts:
    model, run, config = plan.found.model, plan.found.run, plan.found.config
    return ModelFacts(
        architecture=model.description.backbone,
        parameters=sum(parameter.numel() for parameter in model.build().parameters()),
        pretrained=config is None or config.model.weights is not None,
        method=None if config is None else config.method.name,
        training=None if run is None else run.read("result.json"),
        data_licence=plan.table.licence,
        data_provenance=plan.table.provenance,
        export_differences=differences,
    )


def _paper(plan: Plan) -> PaperEntry:
    config = plan.found.config
    return _AUTOLORA if config is not None and config.method.name == "autolora" else _UNPUBLISHED


def _prefix(plan: Plan) -> str:
    return f"evaluation{plan.variant.replace('-', '_')}"


def _metrics(plan: Plan, result: dict[str, Any]) -> dict[str, float]:
    prefix = _prefix(plan)
    metrics = {f"{prefix}/{name}": count["correct"] / count["total"] for name, count in result["accuracies"].items()}
    metrics |= {f"{prefix}/seconds/{name}": float(seconds) for name, seconds in result["seconds"].items()}
    for status in ("PASS", "WARN", "FAIL"):
        if result["sanity"]:
            found = sum(check["status"] == status for check in result["sanity"])
            metrics[f"{prefix}/sanity/{status}"] = float(found)
    if "curve" in result:
        metrics[f"{prefix}/expected_robustness"] = result["curve"]["expected_robustness"]
    return metrics


def _tags(plan: Plan, result: dict[str, Any]) -> dict[str, str]:
    prefix = _prefix(plan)
    tags = {f"{prefix}.{name.removeprefix('robust_accuracy/')}": text for name, text in result["labels"].items()}
    tags[f"{prefix}.epsilon"] = f"{result['threat_model']['epsilon']:.6g}"
    tags[f"{prefix}.package_versions"] = json.dumps(result["package_versions"])
    if result["sanity"]:
        worrying = [f"{check['status']} {check['name']}" for check in result["sanity"] if check["status"] != "PASS"]
        tags[f"{prefix}.sanity"] = "; ".join(worrying) or "all PASS"
    return tags


def _register(plan: Plan, name: str, result: dict[str, Any], tracking: Tracking) -> None:
    """Files the model in the registry, and logs it first where its run has none."""
    if plan.found.run is None:
        model, example = plan.found.model, next(plan.batches(2))
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder, WEIGHTS_FILE)
            save_weights(model.weights, weights, model.description.metadata())
            pair = torch.cat([example] * 2)
            mlflow_tracking.log_model(tracking.uri, tracking.run_id, model.build(), pair, weights=weights)
    tags = {key: f"{value:.4f}" for key, value in _metrics(plan, result).items() if "accuracy" in key}
    tags = {key.replace("/", "."): text for key, text in (tags | _tags(plan, result)).items()}
    version = mlflow_tracking.register_model(tracking.uri, tracking.run_id, name, tags)
    print_line(f"Registered in MLflow as models:/{name}/{version} ({tracking.uri}).")
