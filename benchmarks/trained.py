"""The package's own training step, as the benchmarks take it."""

import torch
from torch import Tensor

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.training.epoch import LossSums, PhaseSeconds
from distributed_autolora.training.task_data import TaskData
from distributed_autolora.training.trainer import Trainer

NATURAL_BRANCH_ACCURACY = 0.9
"""Sets the loss weights of AutoLoRa."""


class TrainingSteps:
    """A trainer in train mode that takes single steps, and the seconds of their phases."""

    def __init__(self, config: ExperimentConfig, data: TaskData, weights: str | None, device: torch.device) -> None:
        self.trainer = Trainer(config, data, weights, device)
        self.trainer.objective.train()
        self.trainer.set_loss_weights(NATURAL_BRANCH_ACCURACY)
        self.timer = PhaseSeconds()
        self.trainer.progress.sums = LossSums(10**9, "the benchmark")  # never checks for a non-finite loss: that waits

    def take(self, batch: Tensor, x: Tensor, y: Tensor) -> None:
        """Takes one step of epoch 1 on this worker's images `x` of a global batch."""
        self.trainer.progress.timer = self.timer
        self.trainer.train_step(batch, x, y)
