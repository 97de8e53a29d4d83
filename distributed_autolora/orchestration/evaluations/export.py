"""The exported files of an evaluation: the model, its card, and its RobustBench entry."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from distributed_autolora.files import write_json, write_text
from distributed_autolora.models.export import export_model
from distributed_autolora.orchestration.evaluations.plan import Plan
from distributed_autolora.records import Evaluation
from distributed_autolora.reporting.model_card import ModelFacts, model_card, robustbench_entry

CARD_FILE, ENTRY_FILE = "model_card.md", "robustbench.json"
_EXPORT = "export"
"""Name of the note of an export that was checked."""


def export(plan: Plan, evaluation: Evaluation) -> list[Path]:
    """Writes the exported files to the evaluation's folder, and returns them.

    Raises:
        RunFailedError: when a reloaded export computes something else than the model.
        StorageError: when a file cannot be written.
    """
    folder = plan.folder.path
    differences = _checked_export(plan)
    facts = _facts(plan, differences)
    write_text(folder / CARD_FILE, model_card(evaluation, facts))
    files = [*(folder / name for name in differences), folder / CARD_FILE]
    if (entry := robustbench_entry(evaluation, facts)) is not None:
        write_json(folder / ENTRY_FILE, entry)
        files.append(folder / ENTRY_FILE)
    return files


def _checked_export(plan: Plan) -> dict[str, float]:
    """Exports the model, unless the folder has the files that an earlier attempt checked, which takes minutes."""
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
    model, run = plan.found.model, plan.found.run
    config = None if run is None else run.config()
    return ModelFacts(
        architecture=model.description.backbone,
        parameters=sum(parameter.numel() for parameter in model.build().parameters()),
        pretrained=config is None or config.model.weights is not None,
        method=None if config is None else config.method.name,
        training=None if run is None else run.result(),
        data_licence=plan.table.card["licence"],
        data_provenance=plan.table.card["provenance"],
        export_differences=differences,
    )
