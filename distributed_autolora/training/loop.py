"""A whole run in one process: epochs, decisions, checkpoints, and the final evaluation."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.core.fast_attack.tf32 import allow_tf32
from distributed_autolora.core.schedules import Decision
from distributed_autolora.records import AccuracyCount, EpochRecord
from distributed_autolora.training.attacks import attack_name
from distributed_autolora.training.distributed import collectives
from distributed_autolora.training.evaluation import (
    Validation,
    measure_similarity,
    natural_branch_accuracy,
    probe_head,
    validate,
)
from distributed_autolora.training.final_evaluation import FinalEvaluation, evaluate_finally
from distributed_autolora.training.masking_check import FOSC_LIMIT, CheckResult, check_masking
from distributed_autolora.training.methods.cost import affords_further_check, epoch_passes, is_checked
from distributed_autolora.training.methods.registry import AdaptsLossWeights
from distributed_autolora.training.reporter import EpochCheckpoints, Reporter, StepProgress
from distributed_autolora.training.task_data import TaskData
from distributed_autolora.training.trainer import Trainer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FitResult(FinalEvaluation):
    """A finished run."""

    history: list[EpochRecord]
    weights: dict[str, Tensor]
    """The deployable model: backbone and head of the epoch chosen on validation, or their average."""


def fit(
    config: ExperimentConfig,
    data: TaskData,
    weights: str | None,
    reporter: Reporter,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    on_step: Callable[[StepProgress], None] | None = None,
) -> FitResult:
    """Trains from the newest checkpoint or from the start, and evaluates the chosen model.

    The first worker calls `on_step` after steps, once a second at most. The evaluation at the end is the only
    time that the test split is opened, and not even then with `evaluation.test_split` off.

    Raises:
        UserError: for weights that do not fit, a corrupt checkpoint, or a loss that is not finite.
    """
    _log.info("Building the network.")
    trainer = Trainer(config, data, weights, device or torch.device("cpu"), dtype)
    latest = reporter.latest()
    if latest is not None:
        trainer.load(latest)
    checkpoints = EpochCheckpoints(trainer, reporter, on_step)
    while not trainer.is_finished:
        run_epoch(trainer, checkpoints.after_step)
        checkpoints.write()
    trainer.restore_best()
    found = evaluate_finally(config, data, trainer.deployed, trainer.attacks.evaluation, trainer.history, weights)
    return FitResult(**vars(found), history=trainer.history, weights=trainer.deployed.state_dict())


def run_epoch(trainer: Trainer, after_step: Callable[[], None] = lambda: None) -> None:
    """Trains what is left of an epoch, validates, decides, restores, and appends the epoch's record.

    Raises:
        TrainingDivergedError: when the loss or a weight is not finite.
    """
    config, data, timer = trainer.config, trainer.data, trainer.progress.timer
    epoch = len(trainer.history) + 1
    _prepare(trainer, epoch)
    lr, objective = trainer.step.lr, trainer.objective
    weights = objective.weights if isinstance(objective, AdaptsLossWeights) else None
    losses = trainer.train_epoch(after_step)
    with timer.phase("validation"):
        branch = _natural_branch(trainer, epoch)
        found = validate(config, trainer.deployed, trainer.attacks, data)
    similarity = None
    if config.evaluation.gradient_similarity_images:
        with timer.phase("gradient_similarity"):
            similarity = measure_similarity(
                config, trainer.objective, trainer.backbone, trainer.attacks.evaluation, data
            )
    check = _check(trainer, found) if is_checked(config, epoch) or _asks_for_check(trainer, found) else None
    decision = trainer.steering.decide(found, check)
    if decision.stop and check is None:
        check = _check(trainer, found)
    trainer.steering.remember(found, check)
    trainer.follow(decision)
    trainer.set_loss_weights(None if branch is None else branch.accuracy)
    trainer.history.append(
        replace(
            _record(trainer, found, check, decision),
            lr=lr,
            natural_weight=None if weights is None else weights.natural_weight,
            kl_weight=None if weights is None else weights.kl_weight,
            natural_branch=branch,
            losses=losses,
            gradient_similarity=similarity,
        )
    )
    trainer.progress = trainer.begin_epoch()


def _record(trainer: Trainer, found: Validation, check: CheckResult | None, decision: Decision) -> EpochRecord:
    config, split, progress = trainer.config, trainer.data.split, trainer.progress
    epoch, seconds = len(trainer.history) + 1, progress.timer.seconds
    best_epoch = epoch if decision.improved else trainer.history[-1].best_epoch
    checked = 0 if check is None else check.counts.images
    return EpochRecord(
        epoch=epoch,
        lr=trainer.step.lr,
        attack=attack_name(config.eval_attack),
        natural=found.natural,
        robust=found.robust,
        fosc=found.fosc,
        masking=None if check is None else check.counts,
        next_lr=decision.lr,
        best_epoch=best_epoch,
        best_robust_accuracy=trainer.steering.best,
        halved=decision.halved,
        restored_epoch=best_epoch if decision.restore_best else None,
        stopped=decision.stop,
        losses={},
        images_per_second=len(split.train) / sum(seconds[phase] for phase in ("data", "attack", "step")),
        epoch_seconds=progress.elapsed,
        phase_seconds={**seconds},
        num_workers=collectives.world_size(),
        passes=epoch_passes(config, len(split.train), len(split.val), epoch, checked),
    )


def _prepare(trainer: Trainer, epoch: int) -> None:
    progress = trainer.progress
    _log.info("Epoch %d %s.", epoch, f"resumes after step {progress.step}" if progress.step else "begins")
    if epoch == 1 and progress.step == 0:
        with progress.timer.phase("validation"):
            probe_head(trainer.config, trainer.backbone, trainer.attacks.evaluation, trainer.data)
            branch = _natural_branch(trainer, epoch=0)
            progress.natural_branch_accuracy = None if branch is None else branch.accuracy
            trainer.set_loss_weights(progress.natural_branch_accuracy)
    _log.info("Epoch %d: steps begin.", epoch)


def _natural_branch(trainer: Trainer, epoch: int) -> AccuracyCount | None:
    with allow_tf32(trainer.device.type == "cuda"), trainer.step.autocast():  # the format that the branch is trained in
        return natural_branch_accuracy(trainer.config, trainer.objective, trainer.data, epoch)


def _check(trainer: Trainer, found: Validation) -> CheckResult | None:
    timer, attacks = trainer.progress.timer, trainer.attacks
    return check_masking(trainer.config, trainer.deployed, attacks, trainer.data, found.outcomes, timer)


def _asks_for_check(trainer: Trainer, found: Validation) -> bool:
    split = trainer.data.split
    sizes = len(split.train), len(split.val)
    return found.fosc > FOSC_LIMIT and affords_further_check(trainer.config, *sizes, trainer.history)
