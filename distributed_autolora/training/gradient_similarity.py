"""Gradient similarity of a method's two objectives, over all workers (Eq. 3 and 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.core.fast_attack.attack_network import AttackNetwork
from distributed_autolora.core.gradient_similarity import batch_gradient_similarity, gradient_similarity
from distributed_autolora.core.keyed_random import keyed_permutation
from distributed_autolora.data.splits import Split, stratified_subset
from distributed_autolora.records import GradientSimilarity
from distributed_autolora.training.distributed import collectives
from distributed_autolora.training.evaluation import Batches
from distributed_autolora.training.methods.registry import Attack

BATCH = 32
"""Images of a batch of the batch form; a constant, so that no number of workers changes what is measured."""


def similarity_rows(config: ExperimentConfig, labels: Tensor, split: Split) -> Tensor:
    """Returns the training rows to measure on: a stratified subset in random order, the same for every method and seed.

    Args:
        config: the experiment; its split seed makes the choice.
        labels: int64, of the training table.
        split: of that table.

    Raises:
        UserError: when there are fewer training images than asked for.
    """
    count, seed = config.evaluation.gradient_similarity_images, config.data.split_seed
    rows = split.train[stratified_subset(labels[split.train], count, seed)]
    # Training never draws the order of an epoch 0. A table sorted by class would give batches of one class each.
    return rows[keyed_permutation(seed, "order", 0, len(rows))]


def measure_similarity(
    objective: torch.nn.Module, network: AttackNetwork, attack: Attack, batches: Batches, rows: Tensor, *, head: str
) -> GradientSimilarity:
    """Returns the mean over images, and the mean over batches.

    Batches of `BATCH` consecutive rows are dealt to the workers; the sums are added over the workers and divided once.

    Args:
        objective: vanilla RFT or TWINS.
        network: the attack network of its backbone, refreshed.
        attack: attack(network, x, y) -> x_adv.
        batches: images and labels of rows, without augmentation.
        rows: [n] rows, the same on every worker; at least one.
        head: name of the classification layer.
    """
    own = rows.split(BATCH)[collectives.rank() :: collectives.world_size()]
    device = next(objective.parameters()).device
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for batch in own:
        x, y = batches(batch)
        x_adv = attack(network, x, y)
        sums[0] += gradient_similarity(objective, x, x_adv, y, head=head).double().sum()
        sums[1] += batch_gradient_similarity(objective, x, x_adv, y, head=head).double()
    images, parts = collectives.sum_over_workers(sums).tolist()
    return GradientSimilarity(by_image=images / len(rows), by_batch=parts / len(rows.split(BATCH)))
