"""The final evaluation: the only time that a run opens its test split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.core.attacks import eval_mode
from distributed_autolora.models import Classifier
from distributed_autolora.records import Accuracies, EpochRecord, RunSummary
from distributed_autolora.training.attacks import Attack
from distributed_autolora.training.evaluation import correct_count, fit_linear_head, natural_and_robust_predictions
from distributed_autolora.training.methods.registry import fresh_classifier
from distributed_autolora.training.task_data import TaskData

TestArrays = dict[str, Any]
"""numpy arrays by name."""
_SAMPLES = 8


@dataclass(frozen=True)
class FinalEvaluation:
    """What the final evaluation found.

    Attributes:
        summary: accuracies, sizes, and what they belong to.
        samples: arrays of a few test images; None when the test split stays closed.
        outcomes: arrays over all test images; None when the test split stays closed.
    """

    summary: RunSummary
    samples: TestArrays | None = None
    outcomes: TestArrays | None = None


def evaluate_finally(
    config: ExperimentConfig,
    data: TaskData,
    model: Classifier,
    attack: Attack,
    history: Sequence[EpochRecord],
    weights: str | None,
) -> FinalEvaluation:
    """Evaluates the deployed network, and the untouched backbone if asked for, on the test split.

    With `evaluation.test_split` off it only sums up validation, and the test split stays closed.

    Args:
        config: the experiment.
        data: the task.
        model: the deployed network, as it is.
        attack: the evaluation attack, on networks of its structure.
        history: one record an epoch.
        weights: file of the pre-trained weights.
    """
    summary = _summary(config, data, history)
    if not config.evaluation.test_split:
        return FinalEvaluation(summary)
    linear_head = None
    if config.evaluation.linear_head and weights is not None:
        linear_head = _accuracies(_predictions(config, data, _linear_head(config, data, model, weights), attack))
    predictions = _predictions(config, data, model, attack)
    test = _accuracies(predictions)
    summary = replace(summary, test=test, test_images=data.num_test, linear_head=linear_head)
    names = ("row", "label", "natural_prediction", f"{summary.attack}_prediction")
    outcomes = {name: column.numpy() for name, column in zip(names, predictions.unbind(1), strict=True)}
    return FinalEvaluation(summary, _samples(data, model, attack), outcomes)


def _summary(config: ExperimentConfig, data: TaskData, history: Sequence[EpochRecord]) -> RunSummary:
    """Returns sizes and validation accuracies; the test split stays closed."""
    best = history[history[-1].best_epoch - 1]
    return RunSummary(
        stopped_epoch=len(history),
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


def _linear_head(config: ExperimentConfig, data: TaskData, like: Classifier, weights: str) -> Classifier:
    """Returns the untouched backbone under a head fitted to the training images."""
    parameter = next(like.parameters())
    classifier = fresh_classifier(config, data.num_classes, weights).to(parameter.device, parameter.dtype)
    fit_linear_head(classifier, data.plain_batch, data.split.train, config.evaluation.batch_size_per_worker)
    return classifier


def _predictions(config: ExperimentConfig, data: TaskData, model: Classifier, attack: Attack) -> Tensor:
    """Returns [n, 4]: row, label, natural and adversarial prediction of every test image."""
    rows, batch_size = torch.arange(data.num_test), config.evaluation.batch_size_per_worker
    return natural_and_robust_predictions(model, attack, data.test_batch, rows, batch_size)


def _accuracies(predictions: Tensor) -> Accuracies:
    _, labels, natural, robust = predictions.unbind(1)
    return Accuracies(correct_count(natural, labels), correct_count(robust, labels))


def _samples(data: TaskData, model: Classifier, attack: Attack) -> TestArrays:
    """Returns the first test images with their adversarial variants and predictions."""
    x, y = data.test_batch(torch.arange(min(_SAMPLES, data.num_test)))
    x_adv = attack(model, x, y)
    with eval_mode(model), torch.no_grad():
        natural, adversarial = (model(images).argmax(1) for images in (x, x_adv))
    arrays = {
        "x": (x * 255).round().to(torch.uint8),
        "x_adv": x_adv.float(),
        "label": y,
        "natural_prediction": natural,
        "adversarial_prediction": adversarial,
    }
    return {name: array.cpu().numpy() for name, array in arrays.items()}
