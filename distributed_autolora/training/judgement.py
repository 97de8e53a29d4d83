"""The final judgement: the one time that a run is judged on its test split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from distributed_autolora.core.attack_network import AttackNetwork
from distributed_autolora.core.attacks import eval_mode
from distributed_autolora.core.metrics import AccuracyCount
from distributed_autolora.training.evaluation import fit_linear_head, natural_and_robust_accuracy
from distributed_autolora.training.methods import attack_dtype, attack_name
from distributed_autolora.training.trainer import Trainer, fresh_classifier

if TYPE_CHECKING:
    from distributed_autolora.models import Classifier

_SAMPLES = 8


def judge(trainer: Trainer, weights: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Judges the trainer's current model, and the untouched backbone if asked for, on the test split.

    Args:
        trainer: holding the model to judge.
        weights: file of the pre-trained weights.

    Returns:
        A summary of JSON values, and arrays of a few samples.
    """
    config, data = trainer.config, trainer.data
    trainer.attack_network.refresh()
    best = trainer.history[-1]["best_epoch"]
    linear_head = None
    if config.evaluation.linear_head and weights is not None:
        linear_head = _test_counts(trainer, *_linear_head(trainer, weights))
    summary = {
        "stopped_epoch": len(trainer.history),
        "best_epoch": best,
        "num_classes": data.num_classes,
        "class_names": list(data.table.class_names),
        "train_images": len(data.split.train),
        "val_images": len(data.split.val),
        "test_images": data.num_test,
        "split_digest": data.split.digest,
        "attack": attack_name(config.eval_attack),
        "epsilon": config.threat_model.epsilon,
        "test": _test_counts(trainer, trainer.backbone, trainer.attack_network),
        "linear_head": linear_head,
        "val": {
            key.removeprefix("val/"): trainer.history[best - 1][key]
            for key in ("val/natural_accuracy", trainer.robust_key)
        },
    }
    return summary, _samples(trainer)


def _linear_head(trainer: Trainer, weights: str) -> tuple[Classifier, AttackNetwork]:
    """Returns the untouched backbone under a head fitted to the training images, and its attack network."""
    dtype = next(trainer.backbone.parameters()).dtype
    classifier = fresh_classifier(trainer.config, trainer.data.num_classes, weights).to(trainer.device, dtype)
    batch_size = trainer.config.evaluation.batch_size_per_worker
    fit_linear_head(classifier, trainer.data.plain_batch, trainer.data.split.train, batch_size)
    return classifier, AttackNetwork(classifier, attack_dtype(trainer.config))


def _test_counts(trainer: Trainer, model: Classifier, network: AttackNetwork) -> dict[str, dict[str, int]]:
    natural, robust = natural_and_robust_accuracy(
        model,
        network,
        trainer.eval_attack,
        trainer.data.test_batch,
        torch.arange(trainer.data.num_test),
        trainer.config.evaluation.batch_size_per_worker,
    )
    robust_name = f"robust_accuracy/{attack_name(trainer.config.eval_attack)}"
    return {"natural_accuracy": _counts(natural), robust_name: _counts(robust)}


def _counts(count: AccuracyCount) -> dict[str, int]:
    return {"correct": count.correct, "total": count.total}


def _samples(trainer: Trainer) -> dict[str, Any]:
    """Returns the first test images with their adversarial variants and predictions, as numpy arrays."""
    rows = torch.arange(min(_SAMPLES, trainer.data.num_test))
    x, y = trainer.data.test_batch(rows)
    x_adv = trainer.eval_attack(trainer.attack_network, x, y)
    with eval_mode(trainer.backbone), torch.no_grad():
        predictions = [trainer.backbone(images).argmax(1) for images in (x, x_adv)]
    arrays = {
        "x": (x * 255).round().to(torch.uint8),
        "x_adv": x_adv.float(),
        "label": y,
        "natural_prediction": predictions[0],
        "adversarial_prediction": predictions[1],
    }
    return {name: array.cpu().numpy() for name, array in arrays.items()}
