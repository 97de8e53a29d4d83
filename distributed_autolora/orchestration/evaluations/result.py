"""From the outcome of every image to the record of an evaluation."""

from __future__ import annotations

from collections import Counter

import torch

from distributed_autolora.evaluation.attacks import label
from distributed_autolora.evaluation.chunks import Columns
from distributed_autolora.orchestration.evaluations.plan import Plan, package_versions, task_name
from distributed_autolora.records import AccuracyCount, AttackResult, Evaluation

_ROBUST = "robust/"


def counts_of(columns: Columns) -> dict[str, AccuracyCount]:
    """Returns the natural accuracy and that under each attack of one chunk or all images, by their logged names."""
    total = len(columns["label"])
    natural = int((columns["natural_prediction"] == columns["label"]).sum())
    robust = {name.removeprefix(_ROBUST): int(v.sum()) for name, v in columns.items() if name.startswith(_ROBUST)}
    return {"natural_accuracy": AccuracyCount(natural, total)} | {
        f"robust_accuracy/{attack}": AccuracyCount(correct, total) for attack, correct in robust.items()
    }


def describe(plan: Plan, outcomes: Columns, *, chunk_seconds: float) -> Evaluation:
    """Returns the record of an evaluation, without curve and sanity checks, from the columns over all images."""
    task, request, table, counts = plan.task, plan.request, plan.table, counts_of(outcomes)
    labels = {
        attack.name: label(attack, len(table.class_names), threat_model=task.threat_model, step_size=task.step_size)
        for attack in task.attacks
    }
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
        epsilon=task.epsilon,
        natural=counts["natural_accuracy"],
        attacks=tuple(AttackResult(name, text, counts[f"robust_accuracy/{name}"]) for name, text in labels.items()),
        broken_by=dict(broken_by),
        chunk_size=request.chunk_size,
        seed=request.seed,
        num_workers=request.num_workers,
        use_gpu=request.use_gpu,
        chunk_seconds=chunk_seconds,
        package_versions=package_versions(),
    )
