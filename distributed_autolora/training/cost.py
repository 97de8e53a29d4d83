"""What a run costs: images passed through the network, forwards and backwards, summed over all workers.

Counted from the config and the numbers of images, not measured: the attacks, the training steps with their teacher, the
natural-branch accuracy, the natural and adversarial forwards of validation, and its check by a stronger attack. The
measurement of gradient similarity and the judgement on the test split are left out: they are no part of choosing or
training a model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.training.averaging import has_teacher
from distributed_autolora.training.loss_weights import follows_accuracy
from distributed_autolora.training.methods import METHODS, stronger_attack

MASKING_SHARE = 0.05
"""Largest share that checks by the stronger attack may add to a run's passes."""


@dataclass(frozen=True)
class Passes:
    """Images passed through the network; an image counts once a pass."""

    forward: int
    backward: int


def epoch_passes(
    config: ExperimentConfig, train_images: int, val_images: int, epoch: int, checked_images: int = 0
) -> Passes:
    """Returns the passes of one epoch (from 1).

    A step of an attack is one forward and one backward. The first epoch also bears the natural-branch accuracy that
    is measured before it. `checked_images` met the stronger attack, too.
    """
    method = METHODS[config.method.name]
    search, judge = config.train_attack.num_steps, config.eval_attack.num_steps
    teacher = 1 if has_teacher(config) else 0
    accuracies = (2 if epoch == 1 else 1) if follows_accuracy(config) else 0
    check = stronger_attack(config.eval_attack).num_steps
    return Passes(
        forward=train_images * (search + method.forward_passes + teacher + accuracies)
        + val_images * (judge + 2)
        + checked_images * (check + 1),
        backward=train_images * (search + method.backward_passes) + val_images * judge + checked_images * check,
    )


def masking_images(config: ExperimentConfig, train_images: int, val_images: int) -> int:
    """Returns how many validation images the stronger attack gets: all checks add `MASKING_SHARE` to a run at most.

    The last epoch is checked as well, with rule "paired" perhaps two states of it, and the automatic schedule may end a
    run: the worst end counts. What a proposed restore costs comes on top. 0: no image is affordable, or
    `evaluation.masking_every` is 0.
    """
    every = config.evaluation.masking_every
    if every == 0:
        return 0
    ends = range(_earliest_end(config), config.optimization.epochs + 1)
    compares = compares_kept_state(config)
    checks_an_epoch = max((math.ceil(end / every) + (compares and end > 1)) / end for end in ends)
    epoch = epoch_passes(config, train_images, val_images, epoch=2)
    image = 2 * stronger_attack(config.eval_attack).num_steps + 1
    return min(val_images, int(MASKING_SHARE * (epoch.forward + epoch.backward) / checks_an_epoch / image))


def compares_kept_state(config: ExperimentConfig) -> bool:
    """Tells whether a kept state is compared under the stronger attack before it takes the present one's place."""
    return config.schedule.name == "automatic" and config.schedule.rule == "paired"


def _earliest_end(config: ExperimentConfig) -> int:
    """Returns the first epoch that a run may end with: the automatic rule halves once an interval at most."""
    schedule, optimization = config.schedule, config.optimization
    if schedule.name != "automatic":
        return optimization.epochs
    halvings = max(1, math.floor(math.log2(optimization.lr / schedule.min_lr)) + 1) if schedule.min_lr else math.inf
    return int(min(optimization.epochs, schedule.interval * halvings))


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
