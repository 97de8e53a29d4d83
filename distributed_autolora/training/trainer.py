"""What a run holds in one process: network, schedule, records, and how they are saved and resumed."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.core.fast_attack.cuda_graphs import CudaGraphs
from distributed_autolora.core.keyed_random import keyed_uniform
from distributed_autolora.core.paired_comparison import StrongerCheck
from distributed_autolora.core.schedules import Decision
from distributed_autolora.data.sampler import global_batches, worker_share
from distributed_autolora.errors import TrainingDivergedError, UserError
from distributed_autolora.records import EpochRecord
from distributed_autolora.training.attacks import build_attacks
from distributed_autolora.training.checkpoint import TrainingState, momentum_buffers, restore_momentum, snapshot
from distributed_autolora.training.distributed import collectives
from distributed_autolora.training.distributed.shard_batch_norm import distributed_batch_norm
from distributed_autolora.training.epoch import EpochProgress
from distributed_autolora.training.evaluation import Validation
from distributed_autolora.training.masking_check import CheckResult
from distributed_autolora.training.methods.registry import (
    build_objective,
    build_schedule,
    fresh_classifier,
    method_of,
    set_weights,
)
from distributed_autolora.training.methods.weight_averaging import Averaging
from distributed_autolora.training.step import TrainingStep
from distributed_autolora.training.task_data import TaskData


class Trainer:
    """A run in one process; its objective owns the backbone and every other trained tensor.

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
        self.backbone = fresh_classifier(config, data.num_classes, weights).to(device, dtype)
        self.objective = build_objective(config, self.backbone).to(device, dtype)
        self.objective.to(memory_format=torch.channels_last)
        averaging = Averaging(config, self.objective, self.backbone, len(data.split.train))
        self.deployed = averaging.deployed
        statistics = distributed_batch_norm(self.objective, config.optimization)
        graphs = CudaGraphs(device) if device.type == "cuda" else None
        self.attacks = build_attacks(config, self.backbone, self.deployed, graphs)
        self.step = TrainingStep(
            config, self.backbone, self.objective, self.attacks.train, averaging, statistics, device
        )
        set_weights(self.objective, config.method, None)
        self.steering = Steering(config)
        self.history: list[EpochRecord] = []
        self.progress = self.begin_epoch()
        self._best = snapshot(self.objective)
        x, y = data.plain_batch(data.split.train[:2])
        collectives.settle_reduction_layout(self.step.objective, x, x, y)
        statistics.forget()

    @property
    def is_finished(self) -> bool:
        """Whether no epoch is left: all were run, or the schedule stopped."""
        epochs = self.config.optimization.epochs
        return bool(self.history) and (len(self.history) >= epochs or self.history[-1].stopped)

    def state(self) -> TrainingState:
        """Returns where the run stands; tensors are the live ones. Every worker calls it.

        Raises:
            TrainingDivergedError: when a weight is not finite.
        """
        self._check_weights()
        return TrainingState(
            model=self.objective.state_dict(),
            best=self._best,
            momentum=momentum_buffers(self.objective, self.step.optimizer),
            history=self.history,
            identity=self._identity,
            progress=self.progress.state() if self.progress.step else None,
            **self.steering.by_image,
        )

    def load(self, state: TrainingState) -> None:
        """Resumes from a checkpoint.

        Raises:
            UserError: when the checkpoint is another run's.
        """
        if state.identity != self._identity:
            raise UserError(
                f"The newest checkpoint is of another run ({state.identity}, not {self._identity}). "
                "Start the run afresh with --fresh."
            )
        self.objective.load_state_dict(dict(state.model))
        self._best = {name: value.to(self.device) for name, value in state.best.items()}
        restore_momentum(self.objective, self.step.optimizer, state.momentum)
        self.history = list(state.history)
        self.steering.replay(self.history, state.outcomes, state.newly_broken)
        for record in self.history[-1:]:
            self.set_loss_weights(None if record.natural_branch is None else record.natural_branch.accuracy)
            self.step.lr = record.next_lr
        self.progress = self.begin_epoch()
        if state.progress is not None:
            self.progress.load(state.progress, self.device)
        self.set_loss_weights(self.progress.natural_branch_accuracy)

    def set_loss_weights(self, accuracy: float | None) -> None:
        """Sets lambda1 and lambda2 by the natural-branch accuracy, those that are not fixed; None changes nothing."""
        set_weights(self.objective, self.config.method, accuracy)

    def restore_best(self) -> None:
        """Goes back to the chosen epoch's state."""
        self.objective.load_state_dict(self._best)

    def train_epoch(self, after_step: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Takes the steps of an epoch that are left, and returns the mean loss terms over all its images."""
        progress, epoch = self.progress, len(self.history) + 1
        self.objective.train()
        size = self.config.optimization.global_batch_size
        batches = global_batches(self.data.split.train, size, self.config.seed, epoch)[progress.step :]
        shares = [self.share(batch) for batch in batches]
        images = self.data.prefetch(shares, epoch, "augmentation")
        for batch in batches:
            with progress.timer.phase("data"):
                x, y = next(images)
            self.train_step(batch, x, y)
            progress.step += 1
            after_step()
        # On a GPU this waits for the kernels of the last steps: their time belongs to training.
        with progress.timer.phase("step"):
            self._check_weights()
            return progress.sums.means()

    def share(self, batch: Tensor) -> Tensor:
        """Returns what this worker has of a global batch."""
        shards = self.config.optimization.batch_norm_shards
        return worker_share(batch, collectives.rank(), collectives.world_size(), shards)

    def train_step(self, batch: Tensor, x: Tensor, y: Tensor) -> None:
        """Takes one step on this worker's share of a global batch of rows: images x and labels y, possibly none."""
        progress, denominator, rows = self.progress, len(batch) / collectives.world_size(), self.share(batch)
        with progress.timer.phase("attack"):
            epoch, shape = len(self.history) + 1, tuple(x.shape[1:])
            noise = keyed_uniform(self.config.seed, "attack", epoch, self.data.to_device(rows), shape)
        further = method_of(self.config).step_arguments(len(batch), self.share(torch.arange(len(batch))).tolist())
        terms = self.step(x, y, noise=noise, denominator=denominator, further=further, timer=progress.timer)
        with progress.timer.phase("step"):
            progress.sums.add(terms, denominator, len(batch))

    def follow(self, decision: Decision) -> None:
        """Keeps or restores the chosen state and sets the learning rate, the same on every worker.

        Raises:
            RuntimeError: when the workers' decisions differ.
        """
        values = [decision.lr, float(decision.improved), float(decision.restore_best), float(decision.stop)]
        collectives.assert_agreement("the learning-rate decision", values, self.device)
        if decision.improved:
            self._best = snapshot(self.objective)
        if decision.restore_best:
            self.restore_best()
        self.step.lr = decision.lr

    def begin_epoch(self) -> EpochProgress:
        """Returns the progress of an epoch that has done nothing yet: the one that follows the records."""
        return EpochProgress(self.config.scaling.check_finite_every, f"epoch {len(self.history) + 1}")

    def _check_weights(self) -> None:
        weights = [parameter.detach().flatten() for parameter in self.objective.parameters()]
        if not torch.cat(weights).isfinite().all():
            epoch = len(self.history) + 1
            raise TrainingDivergedError(f"The weights are no longer finite in epoch {epoch}. Lower optimization.lr.")

    @property
    def _identity(self) -> dict[str, Any]:
        config = self.config
        return {"config_digest": config.digest(), "seed": config.seed, "split_digest": self.data.split.digest}


class Steering:
    """A learning-rate schedule, and the validation outcomes by image that it is replayed from."""

    def __init__(self, config: ExperimentConfig) -> None:
        self._schedule = build_schedule(config)
        self._outcomes: list[Tensor] = []
        self._newly_broken: list[Tensor] = []

    @property
    def best(self) -> float:
        """Robust validation accuracy that the schedule counts as the best so far."""
        return self._schedule.best

    @property
    def by_image(self) -> dict[str, Tensor]:
        """`outcomes` and `newly_broken` of a `TrainingState`."""
        found = {"outcomes": self._outcomes, "newly_broken": self._newly_broken}
        return {name: torch.stack(epochs) for name, epochs in found.items() if epochs}

    def decide(self, found: Validation, check: CheckResult | None) -> Decision:
        """Takes an epoch's validation, and its check if there was one, and decides about the next epoch."""
        return self._schedule.step(found.robust.accuracy, found.outcomes, None if check is None else check.by_image)

    def remember(self, found: Validation, check: CheckResult | None) -> None:
        """Keeps what was found by image."""
        self._outcomes.append(found.outcomes)
        self._newly_broken.append(torch.zeros_like(found.outcomes) if check is None else check.by_image.newly_broken)

    def replay(self, history: Sequence[EpochRecord], outcomes: Tensor, newly_broken: Tensor) -> None:
        """Takes all decisions of a saved run once more."""
        self._outcomes, self._newly_broken = list(outcomes), list(newly_broken)
        for record, robust, broken in zip(history, self._outcomes, self._newly_broken, strict=True):
            check = None if record.masking is None else StrongerCheck(broken, record.masking.images)
            self._schedule.step(record.robust.accuracy, robust, check)
