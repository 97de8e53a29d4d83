"""An evaluation as an entry of the RobustBench leaderboard (their model_info format)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from distributed_autolora.records import AccuracyCount, Evaluation
from distributed_autolora.reporting.format import pixel_fraction
from distributed_autolora.reporting.model_card import ModelFacts


@dataclass(frozen=True, kw_only=True)
class PaperEntry:
    """The paper that an entry points to; empty texts are for its author to fill in."""

    link: str
    name: str
    authors: str
    venue: str


def robustbench_entry(evaluation: Evaluation, facts: ModelFacts, paper: PaperEntry) -> dict[str, Any] | None:
    """Returns the entry, or None for an evaluation that RobustBench would not list.

    It lists AutoAttack on the whole test set. Accuracies are texts in per cent, as in their files.
    """
    autoattack = evaluation.attack("autoattack")
    if autoattack is None or evaluation.is_subset:
        return None
    failed = [check.name for check in evaluation.sanity if check.status == "FAIL"]
    remarks = [f"{autoattack.label} on {evaluation.test_images:,} test images."]
    if not evaluation.sanity:
        remarks.append("No sanity checks were made.")
    if failed:
        remarks.append(f"Failed sanity checks: {', '.join(failed)}.")
    return {
        **asdict(paper),
        "name": paper.name or evaluation.model,
        "additional_data": facts.pretrained,
        "number_forward_passes": 1,
        "dataset": evaluation.task,
        "architecture": facts.architecture,
        "eps": pixel_fraction(evaluation.epsilon),
        "clean_acc": _per_cent(evaluation.natural),
        "reported": _per_cent(autoattack.robust),
        "autoattack_acc": _per_cent(autoattack.robust),
        "footnote": " ".join(remarks),
        "unreliable": bool(failed),
    }


def _per_cent(count: AccuracyCount) -> str:
    return f"{100 * count.accuracy:.2f}"
