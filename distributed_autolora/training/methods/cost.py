"""What a run costs: images passed through the network, forwards and backwards, summed over all workers.

Counted from the config and the numbers of images, not measured: the attacks, the training steps with their teacher, the
natural-branch accuracy, validation with its attack and its FOSC, and the check by two stronger attacks. The
measurement of gradient similarity and the final evaluation are left out: they neither choose nor train a model.
"""

import math
from collections.abc import Sequence
from itertools import accumulate

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.records import EpochRecord, Passes
from distributed_autolora.training.attacks import checking_steps
from distributed_autolora.training.evaluation import PROBING_ROUNDS
from distributed_autolora.training.methods.registry import METHODS, follows_accuracy
from distributed_autolora.training.methods.weight_averaging import has_teacher

MASKING_SHARE = 0.05
"""Largest share that checks by the stronger attacks may add to a run's passes; those that FOSC asks for, once more."""


def epoch_passes(
    config: ExperimentConfig, train_images: int, val_images: int, epoch: int, checked_images: int = 0
) -> Passes:
    """Returns the passes of one epoch (from 1).

    A step of an attack is one forward and one backward. The first epoch also bears the natural-branch accuracy that
    is measured before it, and the probing of the head. `checked_images` met the stronger attacks, too.
    """
    method = METHODS[config.method.name]
    search, evaluation = config.train_attack.num_steps, config.eval_attack.num_steps
    teacher = 1 if has_teacher(config) else 0
    accuracies = (2 if epoch == 1 else 1) if follows_accuracy(config) else 0
    check = 2 * checking_steps(config.eval_attack)
    probed = epoch == 1 and config.method.head_init == "probing"
    fits, probes = (PROBING_ROUNDS + 1, PROBING_ROUNDS * evaluation) if probed else (0, 0)
    return Passes(
        forward=train_images * (search + method.forward_passes + teacher + accuracies + fits + probes)
        + val_images * (evaluation + 3)
        + checked_images * (check + 2),
        backward=train_images * (search + method.backward_passes + probes)
        + val_images * (evaluation + 1)
        + checked_images * check,
    )


def run_passes(config: ExperimentConfig, train_images: int, val_images: int) -> Passes:
    """Returns the passes of a run of all its epochs; one that its schedule ends earlier has fewer."""
    images = masking_images(config, train_images, val_images)
    epochs = range(1, config.optimization.epochs + 1)
    checked = (images * is_checked(config, epoch) for epoch in epochs)
    each = (epoch_passes(config, train_images, val_images, *one) for one in zip(epochs, checked, strict=True))
    return sum(each, Passes(0, 0))


def is_checked(config: ExperimentConfig, epoch: int) -> bool:
    """Tells whether an epoch (from 1) is checked by the stronger attacks, whatever the schedule makes of it.

    Rule "paired" keeps and restores checked states only, so its decisions are checked as well, and the last epoch
    always is. (An epoch that the schedule ends a run with is checked, too, which nobody knows before.)
    """
    every, schedule = config.evaluation.masking_every, config.schedule
    if every == 0:
        return False
    is_decision = schedule.name == "automatic" and schedule.rule == "paired" and epoch % schedule.interval == 0
    return is_decision or epoch % every == 0 or epoch >= config.optimization.epochs


def masking_images(config: ExperimentConfig, train_images: int, val_images: int) -> int:
    """Returns how many validation images the stronger attacks get: all checks add `MASKING_SHARE` to a run at most.

    The automatic schedule may end a run: the worst end counts. 0: no image is affordable, or
    `evaluation.masking_every` is 0.
    """
    if config.evaluation.masking_every == 0:
        return 0
    earliest, epochs = _earliest_end(config), config.optimization.epochs
    before = list(accumulate((is_checked(config, epoch) for epoch in range(1, epochs)), initial=0))
    checks_an_epoch = max((before[end - 1] + 1) / end for end in range(earliest, epochs + 1))
    epoch = epoch_passes(config, train_images, val_images, epoch=2)
    return min(val_images, int(MASKING_SHARE * _total(epoch) / checks_an_epoch / _passes_of_an_image(config)))


def affords_further_check(
    config: ExperimentConfig, train_images: int, val_images: int, history: Sequence[EpochRecord]
) -> bool:
    """Tells whether one more check than `is_checked` plans fits into `MASKING_SHARE` of the passes up to this epoch."""
    further = sum(not is_checked(config, record.epoch) for record in history if record.masking is not None)
    images, epoch = masking_images(config, train_images, val_images), len(history) + 1
    passes = sum(_total(epoch_passes(config, train_images, val_images, each)) for each in range(1, epoch + 1))
    return 0 < (further + 1) * images * _passes_of_an_image(config) <= MASKING_SHARE * passes


def _passes_of_an_image(config: ExperimentConfig) -> int:
    return _total(epoch_passes(config, 0, 0, epoch=2, checked_images=1))


def _total(passes: Passes) -> int:
    return passes.forward + passes.backward


def _earliest_end(config: ExperimentConfig) -> int:
    """Returns the first epoch that a run may end with: the automatic rule halves once an interval at most."""
    schedule, optimization = config.schedule, config.optimization
    if schedule.name != "automatic":
        return optimization.epochs
    halvings = max(1, math.floor(math.log2(optimization.lr / schedule.min_lr)) + 1) if schedule.min_lr else math.inf
    return int(min(optimization.epochs, schedule.interval * halvings))
