"""The final judgement: the one time that a run is judged on its test split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distributed_autolora.core.attacks import eval_mode
from distributed_autolora.core.fast_attack.attack_network import AttackNetwork
from distributed_autolora.hardware import dtype_of
from distributed_autolora.records import Accuracies, AccuracyCount, RunSummary
from distributed_autolora.training.evaluation import fit_linear_head, natural_and_robust_predictions
from distributed_autolora.training.methods.registry import attack_name, fresh_classifier
from distributed_autolora.training.trainer import Trainer

if TYPE_CHECKING:
    from distributed_autolora.models import Classifier

_SAMPLES = 8


@dataclass(frozen=True)
class Judgement:
    """What the final judgement found.

    Attributes:
        summary: accuracies, sizes, and what they belong to.
        samples: arrays of a few test images; None when the test split stays closed.
        outcomes: arrays over all test images; None when the test split stays closed.
    """

    summary: RunSummary
    samples: dict[str, Any] | None = None
    outcomes: dict[str, Any] | None = None


def judge(trainer: Trainer, weights: str | None) -> Judgement:
    """Judges the trainer's deployed network as it is, and the untouched backbone if asked for, on the test split.

    With `evaluation.test_split` off it only sums up what validation said, and the test split stays closed.

    Args:
        trainer: holding the model to judge.
        weights: file of the pre-trained weights.
    """
    config, data = trainer.config, trainer.data
    best = trainer.history[trainer.history[-1].best_epoch - 1]
    summary = RunSummary(
        stopped_epoch=len(trainer.history),
        best_epoch=best.epoch,
        class_names=tuple(data.table.class_names),
        image_shape=tuple(data.plain_batch(data.split.train[:1])[0].shape[1:]),
        train_images=len(data.split.train),
        val_images=len(data.split.val),
        test_images=None,
        split_digest=data.split.digest,
        task_card=data.table.card,
        attack=best.attack,
        epsilon=config.threat_model.epsilon,
        val=Accuracies(best.natural, best.robust),
        test=None,
        linear_head=None,
    )
    if not config.evaluation.test_split:
        return Judgement(summary)
    trainer.attack_network.refresh(trainer.deployed)
    linear_head = None
    if config.evaluation.linear_head and weights is not None:
        linear_head = _counts(_predictions(trainer, *_linear_head(trainer, weights)))
    predictions = _predictions(trainer, trainer.deployed, trainer.attack_network)
    summary = replace(summary, test=_counts(predictions), test_images=data.num_test, linear_head=linear_head)
    return Judgement(summary, _samples(trainer), _outcomes(trainer, predictions))


def _linear_head(trainer: Trainer, weights: str) -> tuple[Classifier, AttackNetwork]:
    """Returns the untouched backbone under a head fitted to the training images, and its attack network."""
    dtype = next(trainer.backbone.parameters()).dtype
    classifier = fresh_classifier(trainer.config, trainer.data.num_classes, weights).to(trainer.device, dtype)
    batch_size = trainer.config.evaluation.batch_size_per_worker
    fit_linear_head(classifier, trainer.data.plain_batch, trainer.data.split.train, batch_size)
    return classifier, AttackNetwork(classifier, dtype_of(trainer.config.compute.attack_precision))


def _predictions(trainer: Trainer, model: Classifier, network: AttackNetwork) -> Tensor:
    """Returns [n, 4]: row, label, natural and adversarial prediction of every test image."""
    return natural_and_robust_predictions(
        model,
        network,
        trainer.eval_attack,
        trainer.data.test_batch,
        torch.arange(trainer.data.num_test),
        trainer.config.evaluation.batch_size_per_worker,
    )


def _counts(predictions: Tensor) -> Accuracies:
    _, labels, natural, robust = predictions.unbind(1)
    return Accuracies(*(AccuracyCount(int((found == labels).sum()), len(labels)) for found in (natural, robust)))


def _outcomes(trainer: Trainer, predictions: Tensor) -> dict[str, Any]:
    names = ("row", "label", "natural_prediction", f"{attack_name(trainer.config.eval_attack)}_prediction")
    return {name: column.numpy() for name, column in zip(names, predictions.unbind(1), strict=True)}


def _samples(trainer: Trainer) -> dict[str, Any]:
    """Returns the first test images with their adversarial variants and predictions, as numpy arrays."""
    rows = torch.arange(min(_SAMPLES, trainer.data.num_test))
    x, y = trainer.data.test_batch(rows)
    x_adv = trainer.eval_attack(trainer.attack_network, x, y)
    with eval_mode(trainer.deployed), torch.no_grad():
        predictions = [trainer.deployed(images).argmax(1) for images in (x, x_adv)]
    arrays = {
        "x": (x * 255).round().to(torch.uint8),
        "x_adv": x_adv.float(),
        "label": y,
        "natural_prediction": predictions[0],
        "adversarial_prediction": predictions[1],
    }
    return {name: array.cpu().numpy() for name, array in arrays.items()}
