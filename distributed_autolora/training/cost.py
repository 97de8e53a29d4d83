"""What a run costs: images passed through the network, forwards and backwards, summed over all workers.

Counted from the config and the numbers of images, not measured: the attacks, the training steps, the
natural-branch accuracy, and the natural and adversarial forwards of validation. The measurement of gradient similarity
and the judgement on the test split are left out: they are no part of choosing or training a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.training.loss_weights import follows_accuracy
from distributed_autolora.training.methods import METHODS


@dataclass(frozen=True)
class Passes:
    """Images passed through the network; an image counts once a pass."""

    forward: int
    backward: int


def epoch_passes(config: ExperimentConfig, train_images: int, val_images: int, epoch: int) -> Passes:
    """Returns the passes of one epoch (from 1).

    A step of an attack is one forward and one backward. The first epoch also bears the natural-branch accuracy that
    is measured before it.
    """
    method = METHODS[config.method.name]
    search, judge = config.train_attack.num_steps, config.eval_attack.num_steps
    accuracies = (2 if epoch == 1 else 1) if follows_accuracy(config) else 0
    return Passes(
        forward=train_images * (search + method.forward_passes + accuracies) + val_images * (judge + 2),
        backward=train_images * (search + method.backward_passes) + val_images * judge,
    )


def total_cost(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns a run's cost for its result.

    Args:
        history: one record an epoch.

    Returns:
        "worker_seconds" (the wall-clock seconds of every epoch times its workers; start-up is not in an epoch, but a
        measurement of gradient similarity is), "forward_passes" and "backward_passes".
    """
    return {
        "worker_seconds": sum(record["seconds/epoch"] * record["num_workers"] for record in history),
        "forward_passes": sum(record["passes/forward"] for record in history),
        "backward_passes": sum(record["passes/backward"] for record in history),
    }
