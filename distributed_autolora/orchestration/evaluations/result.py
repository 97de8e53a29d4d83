"""From the outcome of every image to counts, labels and what `evaluation.json` holds."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from distributed_autolora.core.metrics import AccuracyCount
from distributed_autolora.evaluation.attacks import label
from distributed_autolora.evaluation.chunks import Columns
from distributed_autolora.orchestration.evaluations.plan import Plan, package_versions, task_name

_ROBUST = "robust/"


def counts_of(columns: Columns) -> dict[str, AccuracyCount]:
    """Returns the natural accuracy and that under each attack.

    Args:
        columns: of one chunk or of all images.
    """
    total = len(columns["label"])
    natural = int((columns["natural_prediction"] == columns["label"]).sum())
    robust = {name: int(values.sum()) for name, values in columns.items() if name.startswith(_ROBUST)}
    return {
        "natural_accuracy": AccuracyCount(natural, total),
        **{
            f"robust_accuracy/{name.removeprefix(_ROBUST)}": AccuracyCount(correct, total)
            for name, correct in robust.items()
        },
    }


def describe(
    plan: Plan,
    outcomes: Columns,
    seconds: dict[str, float],
    sanity: list[dict[str, Any]],
    curve: dict[str, Any] | None,
) -> dict[str, Any]:
    """Returns what `evaluation.json` holds, but for its digest.

    Args:
        plan: the evaluation.
        outcomes: columns over all judged images.
        seconds: what it took.
        sanity: checks as JSON values; empty: none were made.
        curve: points and mean; None: not measured.
    """
    task, table = plan.task, plan.table
    result = {
        "model": plan.found.name,
        "data": task.data_folder,
        "task": task_name(plan.table),
        "protocol": table.protocol,
        "threat_model": {"norm": "linf", "epsilon": task.epsilon},
        "test_images": len(task.rows),
        "test_images_available": len(table),
        "num_classes": len(plan.table.class_names),
        "class_names": list(table.class_names),
        "attacks": [attack.name for attack in task.attacks],
        **_findings(plan, outcomes),
        "sanity": sanity,
        "seconds": seconds,
        **_settings(plan),
    }
    return result if curve is None else {**result, "curve": curve}


def _findings(plan: Plan, outcomes: Columns) -> dict[str, Any]:
    """Returns counts, what they are called, and which attack broke how many images first."""
    task = plan.task
    labels = {
        f"robust_accuracy/{attack.name}": label(
            attack, len(plan.table.class_names), threat_model=task.threat_model, step_size=task.step_size
        )
        for attack in task.attacks
    }
    counts = counts_of(outcomes)
    return {
        "accuracies": {name: {"correct": count.correct, "total": count.total} for name, count in counts.items()},
        "labels": labels,
        "broken_by": dict(Counter(str(name) for name in outcomes["broken_by"].tolist() if name is not None)),
    }


def _settings(plan: Plan) -> dict[str, Any]:
    """Returns how it was judged, and digests and versions of what took part."""
    task, request = plan.task, plan.request
    return {
        "num_workers": request.num_workers,
        "use_gpu": request.use_gpu,
        "chunk_size": request.chunk_size,
        "seed": request.seed,
        "image_size": task.image_size,
        "image_shape": list(plan.images.images(torch.zeros(1, dtype=torch.int64)).shape[1:]),
        "model_digest": task.model.digest(),
        "data_digest": task.data_digest,
        "package_versions": package_versions(),
    }
