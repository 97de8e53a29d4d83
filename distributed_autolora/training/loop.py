"""A whole run in one process: epochs, decisions, checkpoints, and the final judgement."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.records import EpochRecord, GradientSimilarity, RunSummary
from distributed_autolora.training.distributed import collectives
from distributed_autolora.training.final_evaluation import judge
from distributed_autolora.training.gradient_similarity import measure_similarity, similarity_rows
from distributed_autolora.training.masking_check import check_masking
from distributed_autolora.training.methods.cost import epoch_passes, is_checked
from distributed_autolora.training.methods.registry import attack_name
from distributed_autolora.training.reporter import EpochCheckpoints, Reporter
from distributed_autolora.training.task_data import TaskData
from distributed_autolora.training.trainer import Trainer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """What a finished run knows.

    Attributes:
        summary: accuracies and sizes.
        history: one record an epoch.
        weights: the deployable model: backbone and head of the epoch chosen on validation, or their average.
        samples: arrays of a few test images with their perturbed variants and predictions; None without a test.
        outcomes: int64 arrays [n] over all test images in the order of their table: row, label,
            natural_prediction, <attack>_prediction; None without a test.
    """

    summary: RunSummary
    history: list[EpochRecord]
    weights: dict[str, Tensor]
    samples: dict[str, Any] | None
    outcomes: dict[str, Any] | None


def fit(
    config: ExperimentConfig,
    data: TaskData,
    weights: str | None,
    reporter: Reporter,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> FitResult:
    """Trains from the newest checkpoint or from the start, and judges the chosen model.

    That is the only time that the test split is opened, and not even then with `evaluation.test_split` off.

    Args:
        config: the experiment; its attack precision is chosen.
        data: the task.
        weights: file of pre-trained weights, or None.
        reporter: where progress goes.
        device: where to compute; None: the CPU.
        dtype: of parameters and images; float64 is for proofs.

    Raises:
        UserError: for weights that do not fit, a corrupt checkpoint, or a loss that is not finite.
    """
    _log.info("Building the network.")
    trainer = Trainer(config, data, weights, device or torch.device("cpu"), dtype)
    latest = reporter.latest()
    if latest is not None:
        trainer.load(latest)
    checkpoints = EpochCheckpoints(trainer, reporter)
    while not is_finished(config, trainer.history):
        run_epoch(trainer, epoch=len(trainer.history) + 1, after_step=checkpoints.after_step)
        reporter.report(trainer.state())
        checkpoints.written()
    trainer.objective.load_state_dict(trainer.best)
    judgement = judge(trainer, weights)
    return FitResult(
        judgement.summary, trainer.history, trainer.deployed.state_dict(), judgement.samples, judgement.outcomes
    )


def is_finished(config: ExperimentConfig, history: Sequence[EpochRecord]) -> bool:
    """Tells whether no epoch is left: all were run, or the schedule stopped."""
    return bool(history) and (len(history) >= config.optimization.epochs or history[-1].stopped)


def run_epoch(trainer: Trainer, epoch: int, after_step: Callable[[], None] = lambda: None) -> None:
    """Trains what is left of an epoch (from 1), measures, decides, restores, and appends the epoch's record."""
    _begin_or_go_on(trainer, epoch)
    lr, weights = trainer.optimizer.param_groups[0]["lr"], trainer.loss_weights()
    losses = trainer.train_epoch(epoch, after_step)
    with trainer.progress.timer.phase("validation"):
        branch = trainer.natural_branch_accuracy(epoch)
        natural, robust, outcomes = trainer.validate()
    similarity = _gradient_similarity(trainer)
    masking, check = check_masking(trainer, outcomes) if is_checked(trainer.config, epoch) else (None, None)
    decision = trainer.schedule.step(robust.accuracy, outcomes, check)
    if decision.stop and masking is None:
        masking, check = check_masking(trainer, outcomes)
    trainer.remember(outcomes, check)
    trainer.follow(decision)
    trainer.set_loss_weights(None if branch is None else branch.accuracy)
    split, seconds = trainer.data.split, trainer.progress.timer.seconds
    best_epoch = epoch if decision.improved else trainer.history[-1].best_epoch
    checked = 0 if check is None else check.images
    trainer.history.append(
        EpochRecord(
            epoch=epoch,
            lr=lr,
            **weights,
            natural_branch=branch,
            attack=attack_name(trainer.config.eval_attack),
            natural=natural,
            robust=robust,
            masking=masking,
            gradient_similarity=similarity,
            next_lr=decision.lr,
            best_epoch=best_epoch,
            best_robust_accuracy=trainer.schedule.best,
            halved=decision.halved,
            restored_epoch=best_epoch if decision.restore_best else None,
            stopped=decision.stop,
            losses=losses,
            images_per_second=len(split.train) / sum(seconds[phase] for phase in ("data", "attack", "step")),
            epoch_seconds=trainer.progress.elapsed,
            phase_seconds={**seconds},
            num_workers=collectives.world_size(),
            passes=epoch_passes(trainer.config, len(split.train), len(split.val), epoch, checked),
        )
    )
    trainer.begin_epoch()


def _begin_or_go_on(trainer: Trainer, epoch: int) -> None:
    """Logs where the epoch begins; the first one measures the natural-branch accuracy that it begins with, too."""
    progress = trainer.progress
    if progress.step:
        _log.info("Epoch %d goes on after step %d.", epoch, progress.step)
    else:
        _log.info("Epoch %d begins.", epoch)
    if epoch == 1 and progress.step == 0:
        with progress.timer.phase("validation"):
            branch = trainer.natural_branch_accuracy(epoch=0)
            progress.natural_branch_accuracy = None if branch is None else branch.accuracy
            trainer.set_loss_weights(progress.natural_branch_accuracy)
    _log.info("Epoch %d: steps begin.", epoch)


def _gradient_similarity(trainer: Trainer) -> GradientSimilarity | None:
    """Returns what `measure_similarity` finds in a phase of its own; None where it is not asked for."""
    if trainer.config.evaluation.gradient_similarity_images == 0:
        return None
    with trainer.progress.timer.phase("gradient_similarity"):
        trainer.attack_network.refresh()
        return measure_similarity(
            trainer.objective,
            trainer.attack_network,
            trainer.eval_attack,
            trainer.data.plain_batch,
            similarity_rows(trainer.config, trainer.data.table.labels, trainer.data.split),
            head=trainer.backbone.head_name,
        )
