"""What a stronger attack takes away from an accuracy under the runs' own: gradient masking, where it is much."""

from __future__ import annotations

from typing import Any

import numpy as np

from distributed_autolora.reporting.markdown import table
from distributed_autolora.reporting.study import APGD, AUTOATTACK, ROBUST, Study
from distributed_autolora.reporting.study_outcomes import right
from distributed_autolora.reporting.study_schedules import mean_and_each
from distributed_autolora.reporting.study_tables import metric_label


def same_images_table(study: Study, pooled: Any) -> str | None:
    """Returns both accuracies of each arm on the images that the stronger attack judged, and the points between them.

    Args:
        study: the study.
        pooled: its outcomes, from `pooled_outcomes`.

    Returns:
        None where no run has the outcomes of both attacks.
    """
    weak = next((ROBUST + run.attack for run in study.runs if run.attack), None)
    strong = next((m for m in (AUTOATTACK, APGD) if any(study.accuracies(arm.name, m) for arm in study.arms)), None)
    if weak is None or strong is None:
        return None
    rows = []
    for arm in study.arms:
        seeds = [run.seed for run in study.judged(arm.name)]
        pairs = [pair for seed in seeds if (pair := _on_same_images(pooled, arm.name, seed, weak, strong))]
        if pairs:
            lost = [one - other for one, other in pairs]
            own, stronger = ([pair[side] for pair in pairs] for side in (0, 1))
            rows.append([arm.label, *map(mean_and_each, (own, stronger, lost))])
    header = ["%", metric_label(weak), metric_label(strong), "points lost"]
    return table(header, rows) if rows else None


def _on_same_images(pooled: Any, arm: str, seed: int, weak: str, strong: str) -> tuple[float, float] | None:
    """Returns a run's accuracies under both attacks on the images that have both outcomes; None without any."""
    one, other = right(pooled, arm, seed, weak), right(pooled, arm, seed, strong)
    if one is None or other is None:
        return None
    _, mine, theirs = np.intersect1d(one[0], other[0], return_indices=True)
    return (float(one[1][mine].mean()), float(other[1][theirs].mean())) if len(mine) else None
