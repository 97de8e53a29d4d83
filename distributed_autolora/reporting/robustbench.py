"""An evaluation as an entry of the RobustBench leaderboard (their model_info format)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distributed_autolora.reporting.format import pixel_fraction
from distributed_autolora.reporting.model_card import ModelFacts

_AUTOATTACK = "robust_accuracy/autoattack"


@dataclass(frozen=True, kw_only=True)
class PaperEntry:
    """The publication that an entry points to; empty texts are for its author to fill in."""

    link: str
    name: str
    authors: str
    venue: str


def robustbench_entry(result: Mapping[str, Any], facts: ModelFacts, paper: PaperEntry) -> dict[str, Any] | None:
    """Returns the entry, or None for an evaluation that RobustBench would not list.

    It lists AutoAttack on the whole test set. Accuracies are texts in per cent, as in their files.

    Args:
        result: of `evaluation.json`.
        facts: about the model.
        paper: what the entry points to.
    """
    counts = result["accuracies"]
    if _AUTOATTACK not in counts or result["test_images"] != result["test_images_available"]:
        return None
    failed = [check["name"] for check in result["sanity"] if check["status"] == "FAIL"]
    remarks = [f"{result['labels'][_AUTOATTACK]} on {result['test_images']:,} test images."]
    if not result["sanity"]:
        remarks.append("No sanity checks were made.")
    if failed:
        remarks.append(f"Failed sanity checks: {', '.join(failed)}.")
    robust = _per_cent(counts[_AUTOATTACK])
    return {
        "link": paper.link,
        "name": paper.name or str(result["model"]),
        "authors": paper.authors,
        "additional_data": facts.pretrained,
        "number_forward_passes": 1,
        "dataset": result["task"],
        "venue": paper.venue,
        "architecture": facts.architecture,
        "eps": pixel_fraction(result["threat_model"]["epsilon"]),
        "clean_acc": _per_cent(counts["natural_accuracy"]),
        "reported": robust,
        "autoattack_acc": robust,
        "footnote": " ".join(remarks),
        "unreliable": bool(failed),
    }


def _per_cent(count: Mapping[str, int]) -> str:
    return f"{100 * count['correct'] / count['total']:.2f}"
