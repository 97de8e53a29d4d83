"""Accuracies and gradient similarity over all workers: counts and sums travel, ratios do not."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.core.attacks import eval_mode
from distributed_autolora.core.gradient_similarity import batch_gradient_similarity, gradient_similarity
from distributed_autolora.core.keyed_random import keyed_permutation
from distributed_autolora.data.sampler import worker_share
from distributed_autolora.data.splits import Split, stratified_subset
from distributed_autolora.models import Classifier
from distributed_autolora.records import Accuracies, AccuracyCount, GradientSimilarity
from distributed_autolora.training.attacks import Attack, Attacks, Stationarity
from distributed_autolora.training.distributed import collectives
from distributed_autolora.training.methods.registry import AdaptsLossWeights, follows_accuracy
from distributed_autolora.training.task_data import TaskData

Batches = Callable[[Iterable[Tensor]], Iterator[tuple[Tensor, Tensor, Tensor]]]
"""From batches of rows to rows, images and labels, as `TaskData.plain_batches`."""
SIMILARITY_BATCH = 32
"""Images of a batch of gradient similarity's batch form: a constant, so that it does not depend on the workers."""
PROBING_ROUNDS = 3
"""Attacks of the training images in adversarial linear probing."""
_RIDGE = 1e-4
_PROBING_RIDGE = 0.1
"""Larger than `_RIDGE`: a head with a large norm has large gradients, and the first steps would undo the backbone."""
_LBFGS_STEPS = 200


def own_batches(rows: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Cuts this worker's share of `rows` into batches; shards are never padded."""
    share = worker_share(rows, collectives.rank(), collectives.world_size())
    return iter(share.split(batch_size)) if len(share) else iter(())


@dataclass(frozen=True)
class Validation(Accuracies):
    """Accuracies of a network on the validation images."""

    outcomes: Tensor
    """bool [n] on the CPU: robust or not, in ascending order of the rows; the same on every worker."""
    fosc: float
    """Mean first-order stationarity of the attack's last iterates."""


def validate(config: ExperimentConfig, model: nn.Module, attacks: Attacks, data: TaskData) -> Validation:
    """Evaluates `model` on the validation images; the attack's last iterate is classified by `model` itself."""
    batch_size, rows = config.evaluation.batch_size_per_worker, data.split.val
    batches, attack, stationarity = data.plain_batches, attacks.evaluation, attacks.stationarity
    found = natural_and_robust_predictions(model, attack, batches, rows, batch_size, stationarity)
    outcomes, fosc = found[:, 3] == found[:, 1], found[:, 4].contiguous().view(torch.float64)
    return Validation(**vars(accuracies_of(found[:, :4])), outcomes=outcomes, fosc=float(fosc.mean()))


def accuracies_of(predictions: Tensor) -> Accuracies:
    """Counts what is right of [n, 4]: row, label, natural and adversarial prediction."""
    _, labels, natural, robust = predictions.unbind(1)
    return Accuracies(_correct(natural, labels), _correct(robust, labels))


def _correct(predictions: Tensor, labels: Tensor) -> AccuracyCount:
    return AccuracyCount(int((predictions == labels).sum()), len(labels))


def natural_and_robust_predictions(
    model: nn.Module,
    attack: Attack,
    batches: Batches,
    rows: Tensor,
    batch_size: int,
    stationarity: Stationarity | None = None,
) -> Tensor:
    """Returns int64 [n, 4] on the CPU, the same on every worker: row, label, natural and adversarial prediction.

    With `stationarity` the fifth column has the bits of its float64 value: one collective carries all. The lines are in
    ascending order of the row, however many workers made them.
    """
    device = _device(model)
    parts = [torch.empty((0, 5 if stationarity else 4), dtype=torch.int64, device=device)]
    for batch, x, y in batches(own_batches(rows, batch_size)):
        with eval_mode(model), torch.no_grad():
            x_adv = attack(model, x, y)
            natural, robust = model(x).argmax(1), model(x_adv).argmax(1)
        columns = [batch.to(device), y, natural, robust]
        if stationarity is not None:
            columns.append(stationarity(model, x, x_adv, y).double().view(torch.int64))
        parts.append(torch.stack(columns, 1))
    predictions = collectives.gather_rows(torch.cat(parts)).cpu()
    return predictions[predictions[:, 0].argsort()]


def natural_branch_accuracy(
    config: ExperimentConfig, objective: nn.Module, data: TaskData, epoch: int
) -> AccuracyCount | None:
    """Counts the augmented training images that backbone + low-rank branch classify correctly, over all workers.

    None where both loss weights are fixed, or the method has no branch.
    """
    if not follows_accuracy(config):
        return None
    assert isinstance(objective, AdaptsLossWeights)
    batches = own_batches(data.split.train, config.evaluation.batch_size_per_worker)
    count = AccuracyCount()
    with eval_mode(objective), torch.no_grad():
        for x, y in data.prefetch(batches, epoch, "natural_accuracy"):
            count += _correct(objective.natural_logits(x).argmax(1), y)
    device = _device(objective)
    correct, total = collectives.sum_over_workers(torch.tensor([count.correct, count.total], device=device)).tolist()
    return AccuracyCount(correct, total)


def fit_linear_head(
    classifier: Classifier,
    batches: Batches,
    rows: Tensor,
    batch_size: int,
    attack: Attack | None = None,
    rounds: int = PROBING_ROUNDS,
    ridge: float = _RIDGE,
) -> None:
    """Fits the head to the natural images of `rows` over the frozen backbone, by L-BFGS.

    With an attack it then adds the images attacked with that head, and fits again, `rounds` times. (A fit to the last
    attack alone forgets the ones before: its head is weaker than the natural one.)

    Every worker computes the features of its share and fits the same head to all of them.
    """
    found = [_features(classifier, batches, rows, batch_size)]
    _fit(classifier.head, *found[0], ridge)
    for _ in range(0 if attack is None else rounds):
        found.append(_features(classifier, batches, rows, batch_size, attack))
        features, labels = zip(*found, strict=True)
        _fit(classifier.head, torch.cat(features), torch.cat(labels), ridge)


def _features(
    classifier: Classifier, batches: Batches, rows: Tensor, batch_size: int, attack: Attack | None = None
) -> tuple[Tensor, Tensor]:
    head = classifier.head
    shards: list[Tensor] = [head.weight.new_empty((0, head.in_features))]
    labels: list[Tensor] = [torch.empty(0, dtype=torch.int64, device=head.weight.device)]
    with eval_mode(classifier), torch.no_grad():
        for _, x, y in batches(own_batches(rows, batch_size)):
            shards.append(classifier.features(x if attack is None else attack(classifier, x, y)))
            labels.append(y)
    return collectives.gather_rows(torch.cat(shards)), collectives.gather_rows(torch.cat(labels))


def _fit(head: nn.Linear, features: Tensor, y: Tensor, ridge: float) -> None:
    scale = features.std(0).clamp_min(1e-6)
    weight = torch.zeros_like(head.weight, requires_grad=True)
    bias = torch.zeros_like(head.bias, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_LBFGS_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(features / scale, weight, bias), y) + ridge * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        head.weight.copy_(weight / scale)
        head.bias.copy_(bias)
        collectives.copy_from_first(head.weight)
        collectives.copy_from_first(head.bias)


def probe_head(config: ExperimentConfig, classifier: Classifier, attack: Attack, data: TaskData) -> None:
    """Replaces a random head by adversarial linear probing where the config asks for it.

    Source: RoLI (Hua et al., CVPR 2024, arXiv 2312.05716), with a few fits in place of many epochs of SGD.
    """
    if config.method.head_init == "probing":
        batch_size = config.evaluation.batch_size_per_worker
        fit_linear_head(classifier, data.plain_batches, data.split.train, batch_size, attack, ridge=_PROBING_RIDGE)


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
    """Returns the mean similarity of a method's two objectives (Eq. 3 and 4) by image, and by batch of images.

    Batches of `SIMILARITY_BATCH` consecutive rows are dealt to the workers; their sums are added and divided once.
    """
    rows = similarity_rows(config, data.table.labels, data.split)
    batches = rows.split(SIMILARITY_BATCH)
    sums = torch.zeros(2, dtype=torch.float64, device=next(objective.parameters()).device)
    for _, x, y in data.plain_batches(batches[collectives.rank() :: collectives.world_size()]):
        x_adv = attack(model, x, y)
        sums[0] += gradient_similarity(objective, x, x_adv, y, head=model.head_name).double().sum()
        sums[1] += batch_gradient_similarity(objective, x, x_adv, y, head=model.head_name).double()
    images, parts = collectives.sum_over_workers(sums).tolist()
    return GradientSimilarity(by_image=images / len(rows), by_batch=parts / len(batches))


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
