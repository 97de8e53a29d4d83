"""Accuracies over all workers: integer counts travel, ratios do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distributed_autolora.core.attacks import eval_mode
from distributed_autolora.core.fast_attack.attack_network import AttackNetwork
from distributed_autolora.core.metrics import AccuracyCount, count_correct
from distributed_autolora.data.sampler import worker_share
from distributed_autolora.models import Classifier
from distributed_autolora.training.distributed import collectives
from distributed_autolora.training.methods.registry import Attack

Batches = Callable[[Tensor], tuple[Tensor, Tensor]]
Loaded = Callable[[Iterator[Tensor]], Iterator[tuple[Tensor, Tensor]]]
_RIDGE = 1e-4
_LBFGS_STEPS = 200


def own_batches(rows: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Cuts this worker's share of `rows` into batches; shards are never padded."""
    share = worker_share(rows, collectives.rank(), collectives.world_size())
    return iter(share.split(batch_size)) if len(share) else iter(())


def sum_counts(count: AccuracyCount, device: torch.device) -> AccuracyCount:
    """Adds the counts of all workers."""
    total = collectives.sum_over_workers(torch.tensor([count.correct, count.total], device=device))
    return AccuracyCount(int(total[0]), int(total[1]))


def natural_accuracy(
    logits_of: Callable[[Tensor], Tensor], module: nn.Module, load: Loaded, rows: Tensor, batch_size: int
) -> AccuracyCount:
    """Counts the correctly classified natural images among `rows`, over all workers.

    Args:
        logits_of: logits of images; computed with `module` in eval mode, without gradients.
        module: what `logits_of` computes with.
        load: images and labels of each batch of rows.
        rows: [n] rows, shared among the workers.
        batch_size: images per batch of one worker.
    """
    count = AccuracyCount()
    with eval_mode(module), torch.no_grad():
        for x, y in load(own_batches(rows, batch_size)):
            count += count_correct(logits_of(x), y)
    return sum_counts(count, _device(module))


def natural_and_robust_accuracy(
    model: nn.Module, network: AttackNetwork, attack: Attack, batches: Batches, rows: Tensor, batch_size: int
) -> tuple[AccuracyCount, AccuracyCount, tuple[bool, ...]]:
    """Counts correct natural and adversarial images among `rows`, over all workers.

    Returns both counts, and for each image in ascending order of its row whether it is classified rightly as the attack
    leaves it; the same on every worker.

    The attack searches on `network`; its last iterate is judged by one more forward of `model`.

    Args:
        model: the classifier that is judged.
        network: its attack network, refreshed.
        attack: attack(network, x, y) -> x_adv.
        batches: images and labels of rows.
        rows: [n] rows, shared among the workers.
        batch_size: images per batch of one worker.
    """
    predictions = natural_and_robust_predictions(model, network, attack, batches, rows, batch_size)
    _, labels, natural, robust = predictions.unbind(1)
    withstood = tuple((robust == labels).tolist())
    return (
        AccuracyCount(int((natural == labels).sum()), len(labels)),
        AccuracyCount(sum(withstood), len(labels)),
        withstood,
    )


def natural_and_robust_predictions(
    model: nn.Module, network: AttackNetwork, attack: Attack, batches: Batches, rows: Tensor, batch_size: int
) -> Tensor:
    """Returns int64 [n, 4] on the CPU, the same on every worker: row, label, natural and adversarial prediction.

    Its lines are in ascending order of the row, however many workers made them.

    Args: as `natural_and_robust_accuracy`.
    """
    device = _device(model)
    parts = [torch.empty((0, 4), dtype=torch.int64, device=device)]
    for batch, y, natural_logits, robust_logits in _judged(model, network, attack, batches, rows, batch_size):
        parts.append(torch.stack([batch.to(device), y, natural_logits.argmax(1), robust_logits.argmax(1)], 1))
    predictions = collectives.gather_rows(torch.cat(parts)).cpu()
    return predictions[predictions[:, 0].argsort()]


def _judged(
    model: nn.Module, network: AttackNetwork, attack: Attack, batches: Batches, rows: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yields rows, labels, natural logits and adversarial logits of this worker's batches."""
    for batch in own_batches(rows, batch_size):
        x, y = batches(batch)
        with eval_mode(model), torch.no_grad():
            x_adv = attack(network, x, y)
            natural, robust = model(x), model(x_adv)
        yield batch, y, natural, robust


def fit_linear_head(classifier: Classifier, batches: Batches, rows: Tensor, batch_size: int) -> None:
    """Fits the head to the natural images of `rows` over the frozen backbone, by L-BFGS.

    Every worker computes the features of its share and fits the same head to all of them.

    Args:
        classifier: its head is replaced in place; its backbone is only read.
        batches: images and labels of rows.
        rows: [n] rows, shared among the workers.
        batch_size: images per batch of one worker.
    """
    head = classifier.head
    shards: list[Tensor] = [head.weight.new_empty((0, head.in_features))]
    labels: list[Tensor] = [torch.empty(0, dtype=torch.int64, device=head.weight.device)]
    with eval_mode(classifier), torch.no_grad():
        for batch in own_batches(rows, batch_size):
            x, y = batches(batch)
            shards.append(classifier.features(x))
            labels.append(y)
    features = collectives.gather_rows(torch.cat(shards))
    y = collectives.gather_rows(torch.cat(labels))
    scale = features.std(0).clamp_min(1e-6)
    weight = torch.zeros_like(head.weight, requires_grad=True)
    bias = torch.zeros_like(head.bias, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_LBFGS_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(features / scale, weight, bias), y) + _RIDGE * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        head.weight.copy_(weight / scale)
        head.bias.copy_(bias)
        collectives.copy_from_first(head.weight)
        collectives.copy_from_first(head.bias)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
