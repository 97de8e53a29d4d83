"""The parts of a run in one process, and what each of them does in an epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.core.fast_attack.attack_network import AttackNetwork
from distributed_autolora.core.fast_attack.tf32 import allow_tf32
from distributed_autolora.core.keyed_random import keyed_uniform
from distributed_autolora.core.paired_comparison import StrongerCheck
from distributed_autolora.core.schedules import Decision
from distributed_autolora.data.sampler import global_batches, worker_share
from distributed_autolora.errors import TrainingDivergedError, UserError
from distributed_autolora.hardware import dtype_of
from distributed_autolora.records import AccuracyCount, EpochRecord
from distributed_autolora.training.checkpoint import TrainingState, momentum_buffers, restore_momentum, snapshot
from distributed_autolora.training.distributed import batch_norm, collectives
from distributed_autolora.training.epoch import EpochProgress, LossSums, PhaseSeconds
from distributed_autolora.training.evaluation import natural_accuracy, natural_and_robust_accuracy
from distributed_autolora.training.methods.loss_weights import (
    AdaptsLossWeights,
    follows_accuracy,
    set_weights,
    weights_record,
)
from distributed_autolora.training.methods.registry import (
    build_attacks,
    build_objective,
    build_schedule,
    fresh_classifier,
    method_of,
)
from distributed_autolora.training.methods.weight_averaging import Averaging
from distributed_autolora.training.task_data import TaskData


class Trainer:
    """Everything that a run holds in one process.

    Args:
        config: the experiment; its attack precision is chosen.
        data: the task.
        weights: file of pre-trained weights, or None.
        device: where to compute.
        dtype: of parameters and images; float64 is for proofs.

    Raises:
        UserError: for weights that do not fit.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        data: TaskData,
        weights: str | None,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.data, self.device = config, data, device
        self.method = method_of(config)
        self.backbone = fresh_classifier(config, data.num_classes, weights).to(device, dtype)
        self.objective = build_objective(config, self.backbone).to(device, dtype)
        self.objective.to(memory_format=torch.channels_last)
        self.averaging = Averaging(config, self.objective, self.backbone, len(data.split.train))
        self.deployed = self.averaging.deployed
        batch_norm.globalize_batch_norm(self.objective)
        self.wrapped = collectives.data_parallel(self.objective, device)
        self.attack_network = AttackNetwork(self.backbone, dtype_of(config.compute.attack_precision))
        self.optimizer = torch.optim.SGD(
            [parameter for parameter in self.objective.parameters() if parameter.requires_grad],
            lr=config.optimization.lr,
            momentum=config.optimization.momentum,
            weight_decay=config.optimization.weight_decay,
            fused=device.type == "cuda",
        )
        self.schedule = build_schedule(config)
        self.train_attack, self.eval_attack = build_attacks(config, self.attack_network, device)
        self.history: list[EpochRecord] = []
        self.outcomes: list[Tensor] = []
        self.fallen: list[Tensor] = []
        self.best = snapshot(self.objective)
        self.progress = self.begin_epoch()
        x, y = data.plain_batch(data.split.train[:2])
        collectives.settle_reduction_layout(self.wrapped, x, x, y)

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be this run's."""
        return {
            "config_digest": self.config.digest(),
            "seed": self.config.seed,
            "split_digest": self.data.split.digest,
        }

    def state(self) -> TrainingState:
        """Returns where the run stands; tensors are the live ones. Every worker calls it."""
        return TrainingState(
            model=self.objective.state_dict(),
            best=self.best,
            momentum=momentum_buffers(self.objective, self.optimizer),
            history=self.history,
            identity=self.identity,
            progress=self.progress.state() if self.progress.step else None,
            outcomes=_stacked(self.outcomes),
            fallen=_stacked(self.fallen),
        )

    def load(self, state: TrainingState) -> None:
        """Goes on from a checkpoint.

        Raises:
            UserError: when the checkpoint is another run's.
        """
        if state.identity != self.identity:
            raise UserError(
                f"The newest checkpoint is of another run ({state.identity}, not {self.identity}). "
                "Start the run afresh with --fresh."
            )
        self.objective.load_state_dict(dict(state.model))
        self.best = {name: value.to(self.device) for name, value in state.best.items()}
        restore_momentum(self.objective, self.optimizer, state.momentum)
        self.history = list(state.history)
        self.outcomes, self.fallen = list(state.outcomes), list(state.fallen)
        for record, outcomes, fallen in zip(self.history, self.outcomes, self.fallen, strict=True):
            check = None if record.masking is None else StrongerCheck(fallen, record.masking.images)
            self.schedule.step(record.robust.accuracy, outcomes, check)
            self.set_loss_weights(None if record.natural_branch is None else record.natural_branch.accuracy)
            self.set_lr(record.next_lr)
        self.begin_epoch()
        if state.progress is not None:
            self.progress.load(state.progress, self.device)
        if self.progress.natural_branch_accuracy is not None:
            self.set_loss_weights(self.progress.natural_branch_accuracy)

    def begin_epoch(self) -> EpochProgress:
        """Starts the progress of the epoch that follows the records."""
        epoch = len(self.history) + 1
        self.progress = EpochProgress(self.config.scaling.check_finite_every, f"epoch {epoch}")
        return self.progress

    def set_lr(self, lr: float) -> None:
        """Sets the learning rate of the steps to come."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def set_loss_weights(self, natural_branch_accuracy: float | None) -> None:
        """Sets lambda1 and lambda2 from the config and the natural-branch accuracy; not every objective has them."""
        set_weights(self.objective, self.config.method, natural_branch_accuracy)

    def loss_weights(self) -> dict[str, float]:
        """Returns lambda1 and lambda2 for a record; empty for objectives without them."""
        return weights_record(self.objective)

    def train_epoch(self, epoch: int, after_step: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Runs the steps of an epoch (from 1) that are left, and returns the mean loss terms over all its rows.

        Args:
            epoch: the one that follows the records.
            after_step: called after each step, by every worker.

        Raises:
            TrainingDivergedError: when the loss or a weight is not finite.
        """
        progress = self.progress
        self.objective.train()
        batches = global_batches(
            self.data.split.train, self.config.optimization.global_batch_size, self.config.seed, epoch
        )
        shares = [worker_share(batch, collectives.rank(), collectives.world_size()) for batch in batches]
        images = self.data.prefetch(shares[progress.step :], epoch, "augmentation")
        for batch in batches[progress.step :]:
            with progress.timer.phase("data"):
                x, y = next(images)
            self.train_step(batch, x, y, epoch, progress.sums, progress.timer)
            progress.step += 1
            after_step()
        # On a GPU this waits for the kernels of the last steps: their time belongs to training.
        with progress.timer.phase("step"):
            self.check_weights(epoch)
            return progress.sums.means()

    def check_weights(self, epoch: int) -> None:
        """Refuses to go on, and to write a checkpoint, after a step that broke the weights.

        Raises:
            TrainingDivergedError: when a weight is not finite.
        """
        weights = [parameter.detach().flatten() for parameter in self.objective.parameters()]
        if not torch.cat(weights).isfinite().all():
            raise TrainingDivergedError(f"The weights are no longer finite in epoch {epoch}. Lower optimization.lr.")

    def train_step(self, batch: Tensor, x: Tensor, y: Tensor, epoch: int, sums: LossSums, timer: PhaseSeconds) -> None:
        """Takes one step on this worker's share of a global batch.

        Args:
            batch: [global rows] rows of the batch.
            x: [n, C, H, W] augmented images of this worker's rows of it; n may be 0.
            y: [n] their labels.
            epoch: epoch, from 1.
            sums: takes the loss terms.
            timer: takes the seconds.
        """
        worker, num_workers = collectives.rank(), collectives.world_size()
        rows, denominator = worker_share(batch, worker, num_workers), len(batch) / num_workers
        further = self.method.step_arguments(len(batch), worker, num_workers)
        with timer.phase("attack"):
            noise = keyed_uniform(self.config.seed, "attack", epoch, self.data.to_device(rows), tuple(x.shape[1:]))
            self.attack_network.refresh()
            x_adv = self.train_attack(self.attack_network, x, y, noise=noise)
        with timer.phase("step"), allow_tf32(self.device.type == "cuda"):
            with self.autocast():
                further |= self.averaging.teacher_arguments(x)
                terms = self.wrapped(x, x_adv, y, denominator=denominator, **further)
            self.optimizer.zero_grad(set_to_none=True)
            terms.total.backward()
            self.optimizer.step()
            self.averaging.update()
            sums.add(terms, denominator, len(batch))

    def autocast(self) -> torch.autocast:
        """Matrix products in the training step's format, on float32 weights; losses are float32 in either."""
        low = dtype_of(self.config.compute.train_precision) == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=low)

    def natural_branch_accuracy(self, epoch: int) -> AccuracyCount | None:
        """Counts the accuracy of backbone + low-rank branch on the augmented training images; None: not needed.

        It is measured in the format that the branch is trained in.
        """
        if not follows_accuracy(self.config):
            return None
        assert isinstance(self.objective, AdaptsLossWeights)
        with allow_tf32(self.device.type == "cuda"), self.autocast():
            return natural_accuracy(
                self.objective.natural_logits,
                self.objective,
                lambda batches: self.data.prefetch(batches, epoch, "natural_accuracy"),
                self.data.split.train,
                self.config.evaluation.batch_size_per_worker,
            )

    def validate(self) -> tuple[AccuracyCount, AccuracyCount, tuple[bool, ...]]:
        """Returns the deployed network's counts on the validation images, and by ascending row which withstood."""
        self.attack_network.refresh(self.deployed)
        return natural_and_robust_accuracy(
            self.deployed,
            self.attack_network,
            self.eval_attack,
            self.data.plain_batch,
            self.data.split.val,
            self.config.evaluation.batch_size_per_worker,
        )

    def remember(self, outcomes: tuple[bool, ...], check: StrongerCheck | None) -> None:
        """Keeps what an epoch's validation found by image, for a schedule that goes on from a checkpoint."""
        self.outcomes.append(torch.tensor(outcomes))
        self.fallen.append(torch.zeros(len(outcomes), dtype=torch.bool) if check is None else check.newly_broken)

    def follow(self, decision: Decision) -> None:
        """Keeps or restores the chosen state and sets the learning rate, the same on every worker.

        Raises:
            RuntimeError: when the workers' decisions differ.
        """
        values = [decision.lr, float(decision.improved), float(decision.restore_best), float(decision.stop)]
        collectives.assert_agreement("the learning-rate decision", values, self.device)
        if decision.improved:
            self.best = snapshot(self.objective)
        if decision.restore_best:
            self.objective.load_state_dict(self.best)
        self.set_lr(decision.lr)


def _stacked(epochs: list[Tensor]) -> Tensor:
    return torch.stack(epochs) if epochs else torch.empty((0, 0), dtype=torch.bool)
