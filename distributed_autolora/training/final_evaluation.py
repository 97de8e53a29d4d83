"""The final evaluation: the only time that a run opens its test split."""

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
from distributed_autolora.training.evaluation import accuracies_of, fit_linear_head, natural_and_robust_predictions
from distributed_autolora.training.methods.registry import fresh_classifier
from distributed_autolora.training.task_data import TaskData

TestArrays = dict[str, Any]
"""numpy arrays by name."""
_SAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class FinalEvaluation:
    """What the final evaluation found.

    Attributes:
        samples: arrays of a few test images with their adversarial variants and predictions; None without a test.
        outcomes: int64 arrays [n] over all test images in the order of their table: row, label,
            natural_prediction, <attack>_prediction; None without a test.
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
    """
    summary = _summary(config, data, history)
    if not config.evaluation.test_split:
        return FinalEvaluation(summary=summary)
    linear_head = None
    if config.evaluation.linear_head and weights is not None:
        parameter, batch_size = next(model.parameters()), config.evaluation.batch_size_per_worker
        untouched = fresh_classifier(config, data.num_classes, weights).to(parameter.device, parameter.dtype)
        fit_linear_head(untouched, data.plain_batches, data.split.train, batch_size)
        linear_head = accuracies_of(_predictions(config, data, untouched, attack))
    predictions = _predictions(config, data, model, attack)
    test = accuracies_of(predictions)
    summary = replace(summary, test=test, test_images=data.num_test, linear_head=linear_head)
    names = ("row", "label", "natural_prediction", f"{summary.attack}_prediction")
    outcomes = {name: column.numpy() for name, column in zip(names, predictions.unbind(1), strict=True)}
    return FinalEvaluation(summary=summary, samples=_samples(data, model, attack), outcomes=outcomes)


def _summary(config: ExperimentConfig, data: TaskData, history: Sequence[EpochRecord]) -> RunSummary:
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
        norm=config.threat_model.norm,
        val=Accuracies(best.natural, best.robust),
        test=None,
        linear_head=None,
    )


def _predictions(config: ExperimentConfig, data: TaskData, model: Classifier, attack: Attack) -> Tensor:
    rows, batch_size = torch.arange(data.num_test), config.evaluation.batch_size_per_worker
    return natural_and_robust_predictions(model, attack, data.test_batches, rows, batch_size)


def _samples(data: TaskData, model: Classifier, attack: Attack) -> TestArrays:
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
