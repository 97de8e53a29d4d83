"""What the checks by a stronger attack say to people: while a run goes on, and in its result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distributed_autolora.evaluation.masking_test import least_share, overstates, warns_from
from distributed_autolora.records import MASKING_GAP, MASKING_IMAGES, MASKING_STRONGER, attack_name
from distributed_autolora.reporting.format import attack_label


def masking_gap(metrics: dict[str, Any]) -> str:
    """Returns "gap 3.2 %" for an epoch that was checked, "" for others."""
    return f"gap {100 * metrics[MASKING_GAP]:.1f} %" if MASKING_GAP in metrics else ""


def masking_warning(metrics: dict[str, Any], model: str) -> str | None:
    """Returns what to say of an epoch whose evaluation attack promises too much, in one line; None for others.

    Args:
        metrics: the epoch's record in the history.
        model: name of the run.
    """
    if not _is_alarming(metrics):
        return None
    fallen, total = _fallen(metrics), metrics[MASKING_IMAGES]
    attack = attack_label(attack_name(metrics))
    return (
        f"epoch {metrics['epoch']}: {fallen} of {total} validation images withstand {attack} and fall to a stronger "
        f"attack ({100 * fallen / total:.1f} %; more than {100 * least_share(fallen, total):.1f} % at 95 % confidence "
        f"in this check; a check of so many images warns from {_warning_gap(total)} on). "
        f"{_meaning(attack)} {_advice(model)}"
    )


def masking_summary(history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns what a run's checks found, JSON values for its result; None for a run without a check.

    `gap` is that of the check nearest to the chosen epoch, the earlier of two: the nearest to the deployed model.
    """
    checked = [metrics for metrics in history if MASKING_GAP in metrics]
    if not checked:
        return None
    chosen = history[-1]["best_epoch"]
    nearest = min(checked, key=lambda metrics: abs(metrics["epoch"] - chosen))
    largest = max(checked, key=lambda metrics: metrics[MASKING_GAP])
    return {
        "checks": len(checked),
        "images": nearest[MASKING_IMAGES],
        "epoch": nearest["epoch"],
        "robust_accuracy_stronger": nearest[MASKING_STRONGER],
        "gap": nearest[MASKING_GAP],
        "warns_from": warns_from(nearest[MASKING_IMAGES]) / nearest[MASKING_IMAGES],
        "largest_gap": largest[MASKING_GAP],
        "largest_gap_epoch": largest["epoch"],
        "warned_epochs": [metrics["epoch"] for metrics in checked if _is_alarming(metrics)],
    }


def masking_status(result: Mapping[str, Any]) -> str:
    """Returns what the checks by a stronger attack came to, to filter runs by: "unchecked", "clear" or "warned".

    Args:
        result: the run's result.
    """
    found = result.get("masking")
    if not found:
        return "unchecked"
    return "warned" if found["warned_epochs"] else "clear"


def masking_sentences(result: Mapping[str, Any]) -> list[str]:
    """Returns the finding of a run's checks, and a warning where there was one; empty for a run without a check.

    Args:
        result: the run's result.
    """
    found = result.get("masking")
    if not found:
        return []
    attack = attack_label(result["attack"])
    sentences = [
        f"Masking gap: {100 * found['gap']:.1f} % of {found['images']:,} validation images withstand {attack} and fall "
        f"to a stronger attack in epoch {found['epoch']} (warns from {_warning_gap(found['images'])} on; largest of "
        f"{found['checks']} checks: {100 * found['largest_gap']:.1f} %, epoch {found['largest_gap_epoch']})."
    ]
    if found["warned_epochs"]:
        epochs = ", ".join(map(str, found["warned_epochs"]))
        sentences.append(f"Warning in epoch {epochs}: {_meaning(attack)} {_advice(result['name'])}")
    return sentences


def _warning_gap(images: int) -> str:
    return f"{100 * warns_from(images) / images:.1f} %"


def _fallen(metrics: dict[str, Any]) -> int:
    return round(float(metrics[MASKING_GAP]) * int(metrics[MASKING_IMAGES]))


def _is_alarming(metrics: dict[str, Any]) -> bool:
    return MASKING_GAP in metrics and overstates(_fallen(metrics), metrics[MASKING_IMAGES])


def _meaning(attack: str) -> str:
    return (
        f"{attack} promises too much: gradients may be masked. The learning rate follows it, and unless rule paired "
        "chose the model, so does that choice."
    )


def _advice(model: str) -> str:
    return (
        f"Judge the model by python jobs/evaluate.py --model {model} --attacks autoattack; if that confirms it, "
        "train with --schedule.rule paired where the run had not, or try --method.name vanilla."
    )
