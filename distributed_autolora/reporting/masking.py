"""What the checks by a stronger attack say to people: while a run goes on, and in its result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distributed_autolora.evaluation.masking_rule import least_share, overstates
from distributed_autolora.reporting.history import attack_label, attack_name

GAP, STRONGER, IMAGES = "val/masking_gap", "val/robust_accuracy_stronger", "val/masking_images"


def masking_gap(metrics: dict[str, Any]) -> str:
    """Returns "gap 3.2 %" for an epoch that was checked, "" for others."""
    return f"gap {100 * metrics[GAP]:.1f} %" if GAP in metrics else ""


def masking_warning(metrics: dict[str, Any], model: str) -> str | None:
    """Returns what to say of an epoch whose evaluation attack promises too much, in one line; None for others.

    Args:
        metrics: the epoch's record in the history.
        model: name of the run.
    """
    if not _is_alarming(metrics):
        return None
    fallen, total = _fallen(metrics), metrics[IMAGES]
    attack = attack_label(attack_name(metrics))
    return (
        f"epoch {metrics['epoch']}: {fallen} of {total} validation images withstand {attack} and fall to a stronger "
        f"attack ({100 * fallen / total:.1f} %; surely more than {100 * least_share(fallen, total):.1f} %). "
        f"{_meaning(attack)} {_advice(model)}"
    )


def masking_summary(history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns what a run's checks found, JSON values for its result; None for a run without a check."""
    checked = [metrics for metrics in history if GAP in metrics]
    if not checked:
        return None
    last, largest = checked[-1], max(checked, key=lambda metrics: metrics[GAP])
    return {
        "checks": len(checked),
        "images": last[IMAGES],
        "epoch": last["epoch"],
        "robust_accuracy_stronger": last[STRONGER],
        "gap": last[GAP],
        "largest_gap": largest[GAP],
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
        f"to a stronger attack in epoch {found['epoch']} (largest of {found['checks']} checks: "
        f"{100 * found['largest_gap']:.1f} %, epoch {found['largest_gap_epoch']})."
    ]
    if found["warned_epochs"]:
        epochs = ", ".join(map(str, found["warned_epochs"]))
        sentences.append(f"Warning in epoch {epochs}: {_meaning(attack)} {_advice(result['name'])}")
    return sentences


def _fallen(metrics: dict[str, Any]) -> int:
    return round(float(metrics[GAP]) * int(metrics[IMAGES]))


def _is_alarming(metrics: dict[str, Any]) -> bool:
    return GAP in metrics and overstates(_fallen(metrics), metrics[IMAGES])


def _meaning(attack: str) -> str:
    return (
        f"{attack} promises too much: gradients may be masked, and the schedule and the choice of the model follow it."
    )


def _advice(model: str) -> str:
    return (
        f"Judge the model by python jobs/evaluate.py --model {model} --attacks autoattack; if its soft labels are "
        "detached, train with --method.soft-labels joint."
    )
