"""A made-up but typical run: 20 epochs, three halvings with restores, and its result."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

HALVED_AFTER = {9: 7, 13: 11, 17: 15}


def history(epochs: int = 20, *, vanilla: bool = False) -> list[dict[str, Any]]:
    """Returns the records of a run; under vanilla RFT without loss weights and adversarial term."""
    records: list[dict[str, Any]] = []
    lr, branch, best, best_epoch = 0.01, 0.2, 0.0, 1
    for epoch in range(1, epochs + 1):
        robust = 0.80 - 0.5 * math.exp(-epoch / 4) + (0.012 if epoch in (7, 11, 15) else 0.004 * math.sin(3 * epoch))
        natural = 0.92 - 0.4 * math.exp(-epoch / 3)
        if robust > best:
            best, best_epoch = robust, epoch
        halved = epoch in HALVED_AFTER
        next_lr = lr / 2 if halved else lr
        weights = {"natural_weight": 1 - branch, "kl_weight": 6 * branch}
        branch = 0.95 - 0.6 * math.exp(-epoch / 5)
        losses = {"natural": 0.6 / epoch**0.5, "adversarial": 0.1 + 0.5 / epoch, "kl": 0.4 + 0.2 / epoch}
        if vanilla:
            del losses["adversarial"]
        record: dict[str, Any] = {
            "epoch": epoch,
            "lr": lr,
            "next_lr": next_lr,
            "val/natural_accuracy": natural,
            "val/robust_accuracy/pgd10": robust,
            "best_val/robust_accuracy/pgd10": best,
            "best_epoch": best_epoch,
            "halved": int(halved),
            "restored": int(halved),
            "restored_epoch": best_epoch if halved else None,
            "stopped": 0,
            "train/loss/total": sum(losses.values()),
            **{f"train/loss/{name}": loss for name, loss in losses.items()},
            "images_per_second": 212.4 + epoch,
            "seconds/epoch": 6.4,
            "seconds/attack": 3.1 + 0.02 * epoch,
            "seconds/step": 1.7,
            "seconds/validation": 1.1,
            "seconds/data": 0.15,
        }
        records.append(record if vanilla else record | weights | {"natural_branch_accuracy": branch})
        lr = next_lr
    return records


def result(records: list[dict[str, Any]], *, linear_head: bool = True) -> dict[str, Any]:
    """Returns the summary that goes with such a history."""
    counts = {
        "natural_accuracy": {"correct": 921, "total": 1000},
        "robust_accuracy/pgd10": {"correct": 833, "total": 1000},
    }
    untouched = {
        "natural_accuracy": {"correct": 789, "total": 1000},
        "robust_accuracy/pgd10": {"correct": 312, "total": 1000},
    }
    return {
        "name": "demo-3f2a91c0-s0",
        "recipe": "demo",
        "seed": 0,
        "config_digest": "3f2a91c0" * 8,
        "stopped_epoch": len(records),
        "best_epoch": records[-1]["best_epoch"],
        "num_classes": 5,
        "class_names": ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"],
        "test_images": 1000,
        "train_images": 1000,
        "val_images": 250,
        "attack": "pgd10",
        "epsilon": 0.1,
        "test": counts,
        "linear_head": untouched if linear_head else None,
        "val": {"robust_accuracy/pgd10": records[-1]["best_val/robust_accuracy/pgd10"]},
        "seconds": {"training": 128.4, "total": 151.0},
        "mlflow": {"uri": "sqlite:////data/mlflow.db", "run_id": "0123456789abcdef0123456789abcdef"},
        "folder": "/data/runs/demo-3f2a91c0-s0",
    }


def samples(n: int = 8, channels: int = 1, size: int = 28, epsilon: float = 0.1) -> dict[str, Any]:
    """Returns smooth images with perturbations at the edge of the threat model; every third is misjudged."""
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
