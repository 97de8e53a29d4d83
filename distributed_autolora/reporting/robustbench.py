"""An evaluation as an entry of the RobustBench leaderboard (their model_info format)."""

from __future__ import annotations

from typing import Any

from distributed_autolora.records import AccuracyCount, Evaluation
from distributed_autolora.reporting.format import pixel_fraction
from distributed_autolora.reporting.model_card import ModelFacts

_AUTOLORA = {
    "link": "https://arxiv.org/abs/2310.01818",
    "name": "AutoLoRa: A Parameter-Free Automated Robust Fine-Tuning Framework",
    "authors": "Xilie Xu, Jingfeng Zhang, Mohan Kankanhalli",
    "venue": "ICLR 2024",
}


def robustbench_entry(evaluation: Evaluation, facts: ModelFacts) -> dict[str, Any] | None:
    """Returns the entry, or None for an evaluation that RobustBench would not list.

    It lists AutoAttack on the whole test set. Accuracies are texts in per cent, as in their files. Empty texts of the
    paper are for its author to fill in.
    """
    autoattack = evaluation.attack("autoattack")
    if autoattack is None or evaluation.is_subset:
        return None
    unpublished = {"link": "", "name": evaluation.model, "authors": "", "venue": "Unpublished"}
    failed = [check.name for check in evaluation.sanity if check.status == "FAIL"]
    remarks = [f"{autoattack.label} on {evaluation.test_images:,} test images."]
    if not evaluation.sanity:
        remarks.append("No sanity checks were made.")
    if failed:
        remarks.append(f"Failed sanity checks: {', '.join(failed)}.")
    return {
        **(_AUTOLORA if facts.method == "autolora" else unpublished),
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
