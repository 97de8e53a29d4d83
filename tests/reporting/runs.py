"""A made-up but typical run: 20 epochs, three halvings with restores, and its result."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from distributed_autolora.records import (
    Accuracies,
    AccuracyCount,
    Cost,
    EpochRecord,
    MaskingCheck,
    Passes,
    RunResult,
    TrackedRun,
)

HALVED_AFTER = {9: 7, 13: 11, 17: 15}
VAL_IMAGES = 250


def count(accuracy: float, total: int = VAL_IMAGES) -> AccuracyCount:
    return AccuracyCount(round(accuracy * total), total)


def history(epochs: int = 20, *, vanilla: bool = False) -> list[EpochRecord]:
    """Returns the records of a run; under vanilla RFT without loss weights and adversarial term."""
    records: list[EpochRecord] = []
    lr, branch, best, best_epoch = 0.01, 0.2, 0.0, 1
    for epoch in range(1, epochs + 1):
        robust = 0.80 - 0.5 * math.exp(-epoch / 4) + (0.012 if epoch in (7, 11, 15) else 0.004 * math.sin(3 * epoch))
        if robust > best:
            best, best_epoch = robust, epoch
        halved = epoch in HALVED_AFTER
        next_lr = lr / 2 if halved else lr
        weights = (None, None) if vanilla else (1 - branch, 6 * branch)
        branch = 0.95 - 0.6 * math.exp(-epoch / 5)
        losses = {"natural": 0.6 / epoch**0.5, "adversarial": 0.1 + 0.5 / epoch, "kl": 0.4 + 0.2 / epoch}
        if vanilla:
            del losses["adversarial"]
        record = EpochRecord(
            epoch=epoch,
            lr=lr,
            next_lr=next_lr,
            natural_weight=weights[0],
            kl_weight=weights[1],
            natural_branch=None if vanilla else count(branch, 1000),
            attack="pgd10",
            natural=count(0.92 - 0.4 * math.exp(-epoch / 3)),
            robust=count(robust),
            fosc=0.05 + 0.25 / epoch,
            best_robust_accuracy=best,
            best_epoch=best_epoch,
            halved=halved,
            restored_epoch=best_epoch if halved else None,
            stopped=False,
            losses={"total": sum(losses.values()), **losses},
            images_per_second=212.4 + epoch,
            epoch_seconds=6.4,
            phase_seconds={"attack": 3.1 + 0.02 * epoch, "step": 1.7, "validation": 1.1, "data": 0.15},
            num_workers=2,
            passes=Passes(forward=14000, backward=11000),
        )
        records.append(record)
        lr = next_lr
    return records


def checked(record: EpochRecord, broken: int, images: int = 64) -> EpochRecord:
    robust = round(record.robust.accuracy * images) - broken
    return replace(record, masking=MaskingCheck(images, max(0, robust), broken))


def result(records: Sequence[EpochRecord], *, linear_head: bool = True) -> RunResult:
    chosen = records[records[-1].best_epoch - 1]
    return RunResult(
        name="demo-3f2a91c0-s0",
        recipe="demo",
        seed=0,
        config_digest="3f2a91c0" * 8,
        method="autolora",
        task="pets",
        backbone="resnet18",
        schedule="automatic",
        rule="released",
        stopped_epoch=len(records),
        best_epoch=chosen.epoch,
        class_names=("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        image_shape=(1, 28, 28),
        test_images=1000,
        train_images=1000,
        val_images=VAL_IMAGES,
        split_digest="0a" * 32,
        task_card={},
        attack="pgd10",
        epsilon=0.1,
        test=Accuracies(AccuracyCount(921, 1000), AccuracyCount(833, 1000)),
        linear_head=Accuracies(AccuracyCount(789, 1000), AccuracyCount(312, 1000)) if linear_head else None,
        val=Accuracies(chosen.natural, chosen.robust),
        masking=None,
        cost=Cost(seconds=128.4, worker_seconds=256.8, forward_passes=280000, backward_passes=220000),
        mlflow=TrackedRun("sqlite:////data/mlflow.db", "0123456789abcdef0123456789abcdef"),
        folder="/data/runs/demo-3f2a91c0-s0",
    )


def without_times(history: Sequence[EpochRecord]) -> list[dict[str, float]]:
    return [
        {key: value for key, value in record.metrics().items() if not key.startswith(("seconds", "images"))}
        for record in history
    ]


def samples(n: int = 8, channels: int = 1, size: int = 28, epsilon: float = 0.1) -> dict[str, Any]:
    """Returns smooth images with perturbations at the edge of the threat model; every third is misclassified."""
    draw = np.random.default_rng(0)
    ramp = np.linspace(40, 215, size)
    phase = draw.uniform(0, 60, (n, channels, 1, 1))
    x = np.clip(ramp[None, None, :, None] * 0.5 + ramp[None, None, None, :] * 0.5 + phase - 30, 0, 255).astype(np.uint8)
    noise = epsilon * np.sign(draw.normal(size=x.shape))
    label = np.arange(n) % 5
    return {
        "x": x,
        "x_adv": np.clip(x / 255 + noise, 0, 1).astype(np.float32),
        "label": label,
        "natural_prediction": np.where(np.arange(n) == 4, (label + 1) % 5, label),
        "adversarial_prediction": np.where(np.arange(n) % 3 == 1, (label + 2) % 5, label),
    }
