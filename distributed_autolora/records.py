"""Keys of an epoch's record that more than one layer reads. Imports nothing, so that reports may use it as well."""

from __future__ import annotations

import math
from typing import Any

MASKING_STRONGER = "val/robust_accuracy_stronger"
"""Accuracy on the checked images under the evaluation attack and the stronger one."""
MASKING_GAP = "val/masking_gap"
"""Share of the checked images that only the evaluation attack leaves right."""
MASKING_IMAGES = "val/masking_images"
"""How many validation images were checked."""


ROBUST_VALIDATION = "val/robust_accuracy/"


NATURAL_VALIDATION = "val/natural_accuracy"


LOSS_TERMS = ("natural", "adversarial", "kl", "natural_frozen", "kl_frozen")


PHASES = ("attack", "step", "validation", "data", "gradient_similarity", "masking")


def value(metrics: dict[str, Any], key: str) -> float | None:
    """Returns a metric as a number, or None where it is absent or not measured."""
    found = metrics.get(key)
    return None if found is None else float(found)


def series(history: list[dict[str, Any]], key: str) -> list[float]:
    """Returns a metric by epoch, NaN where it is absent."""
    return [math.nan if (found := value(metrics, key)) is None else found for metrics in history]


def attack_name(metrics: dict[str, Any]) -> str:
    """Returns the name of the validation attack, such as "pgd10".

    Raises:
        ValueError: for metrics without a robust validation accuracy.
    """
    for key in metrics:
        if key.startswith(ROBUST_VALIDATION):
            return key.removeprefix(ROBUST_VALIDATION)
    raise ValueError(f"no metric begins with {ROBUST_VALIDATION}")


def accuracy_counts(part: dict[str, Any], name: str) -> tuple[int, int]:
    """Returns (correct, total) of one accuracy of a result."""
    return int(part[name]["correct"]), int(part[name]["total"])


def accuracy_names(result: dict[str, Any]) -> tuple[str, str]:
    """Returns the names of the natural and the robust accuracy in a result's counts."""
    return "natural_accuracy", f"robust_accuracy/{result['attack']}"
