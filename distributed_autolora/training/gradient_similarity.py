"""Gradient similarity of a method's two objectives, over all workers (Eq. 3 and 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.core.gradient_similarity import batch_gradient_similarity, gradient_similarity
from distributed_autolora.core.keyed_random import keyed_permutation
from distributed_autolora.data.splits import Split, stratified_subset
from distributed_autolora.models import Classifier
from distributed_autolora.records import GradientSimilarity
from distributed_autolora.training.attacks import Attack
from distributed_autolora.training.distributed import collectives
from distributed_autolora.training.task_data import TaskData

BATCH = 32
"""Images of a batch of the batch form; a constant, so that no number of workers changes what is measured."""


def similarity_rows(config: ExperimentConfig, labels: Tensor, split: Split) -> Tensor:
    """Returns the training rows to measure on: a stratified subset in random order, the same for every method and seed.

    Raises:
        UserError: when there are fewer training images than asked for.
    """
    count, seed = config.evaluation.gradient_similarity_images, config.data.split_seed
    rows = split.train[stratified_subset(labels[split.train], count, seed)]
    # Training never draws the order of an epoch 0. A table sorted by class would give batches of one class each.
    return rows[keyed_permutation(seed, "order", 0, len(rows))]


def measure_similarity(
    config: ExperimentConfig, objective: nn.Module, model: Classifier, attack: Attack, data: TaskData
) -> GradientSimilarity:
    """Returns the mean over the images to measure on, and over their batches.

    Batches of `BATCH` consecutive rows are dealt to the workers; the sums are added over the workers and divided once.
    """
    rows = similarity_rows(config, data.table.labels, data.split)
    batches = rows.split(BATCH)
    sums = torch.zeros(2, dtype=torch.float64, device=next(objective.parameters()).device)
    for batch in batches[collectives.rank() :: collectives.world_size()]:
        x, y = data.plain_batch(batch)
        x_adv = attack(model, x, y)
        sums[0] += gradient_similarity(objective, x, x_adv, y, head=model.head_name).double().sum()
        sums[1] += batch_gradient_similarity(objective, x, x_adv, y, head=model.head_name).double()
    images, parts = collectives.sum_over_workers(sums).tolist()
    return GradientSimilarity(by_image=images / len(rows), by_batch=parts / len(batches))
