"""The record of an evaluation, counted from the outcomes of all images."""

from collections import Counter
from typing import Any

import numpy as np
import torch

from distributed_autolora.evaluation.attacks import TRANSFER, label
from distributed_autolora.evaluation.chunks import Columns
from distributed_autolora.evaluation.corruptions import COLUMN as CORRUPTED
from distributed_autolora.orchestration.evaluations.plan import Plan, package_versions, task_name
from distributed_autolora.records import WORST_CASE, AccuracyCount, AttackResult, CorruptionResult, Evaluation


def counts_of(columns: Columns) -> dict[str, AccuracyCount]:
    """Returns all accuracies of outcomes by the names under which they are logged."""
    total = len(columns["label"])
    natural = int((columns["natural_prediction"] == columns["label"]).sum())
    return {"natural_accuracy": AccuracyCount(natural, total)} | {
        name.replace("robust/", "robust_accuracy/"): AccuracyCount(int(values.sum()), total)
        for name, values in columns.items()
        if name.startswith("robust/")
    }


def with_worst_case(outcomes: Columns, names: list[str]) -> Columns:
    """Adds whether each image is robust to all attacks, where there are several."""
    if len(names) < 2:
        return outcomes
    return outcomes | {f"robust/{WORST_CASE}": np.logical_and.reduce([outcomes[f"robust/{name}"] for name in names])}


def _corruptions(outcomes: Columns) -> tuple[CorruptionResult, ...]:
    found = [(name.removeprefix(CORRUPTED), values) for name, values in outcomes.items() if name.startswith(CORRUPTED)]
    return tuple(
        CorruptionResult(name, int(severity), AccuracyCount(int(values.sum()), len(values)))
        for key, values in found
        for name, _, severity in [key.rpartition("/")]
    )


def described(plan: Plan, outcomes: Columns, *, chunk_seconds: float) -> Evaluation:
    """Returns the record of an evaluation's outcomes."""
    task, request, table, counts = plan.task, plan.request, plan.table, counts_of(outcomes)
    settings: dict[str, Any] = {"threat_model": task.threat_model, "step_size": task.step_size}
    labels = {
        attack.name: label(
            attack, len(table.class_names), surrogate=plan.surrogate if attack.name == TRANSFER else "", **settings
        )
        for attack in task.attacks
    }
    worst_case = None
    if (count := counts.get(f"robust_accuracy/{WORST_CASE}")) is not None:
        worst_case = AttackResult(WORST_CASE, f"worst case: robust to all of {', '.join(labels)} (union)", count)
    broken_by = Counter(str(name) for name in outcomes["broken_by"].tolist() if name is not None)
    return Evaluation(
        digest=plan.folder.digest,
        model=plan.found.name,
        model_digest=task.model.digest(),
        data=task.data_folder,
        data_digest=task.data_digest,
        task=task_name(table),
        protocol=table.protocol,
        class_names=tuple(table.class_names),
        test_images=len(task.rows),
        test_images_available=len(table),
        image_size=task.image_size,
        image_shape=tuple(plan.images.images(torch.zeros(1, dtype=torch.int64)).shape[1:]),
        norm=task.threat_model.norm,
        epsilon=task.threat_model.epsilon,
        natural=counts["natural_accuracy"],
        attacks=tuple(AttackResult(name, text, counts[f"robust_accuracy/{name}"]) for name, text in labels.items()),
        worst_case=worst_case,
        corruptions=_corruptions(outcomes),
        broken_by=dict(broken_by),
        chunk_size=request.chunk_size,
        seed=request.seed,
        num_workers=request.num_workers,
        use_gpu=request.use_gpu,
        chunk_seconds=chunk_seconds,
        package_versions=package_versions(),
    )
