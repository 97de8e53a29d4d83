"""One training step: attack, objective, backward, optimiser."""

from typing import Any

import torch
from torch import Tensor, nn

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.core.fast_attack.tf32 import allow_tf32
from distributed_autolora.core.objectives import LossTerms
from distributed_autolora.hardware import dtype_of
from distributed_autolora.models import Classifier
from distributed_autolora.training.attacks import Attack
from distributed_autolora.training.distributed import collectives
from distributed_autolora.training.distributed.shard_batch_norm import RunningStatistics
from distributed_autolora.training.epoch import PhaseSeconds
from distributed_autolora.training.methods.weight_averaging import Averaging


class TrainingStep:
    """Takes steps of SGD on a method's objective; gradients are averaged over the workers.

    Attributes:
        attack: what the backbone is trained against.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        backbone: Classifier,
        objective: nn.Module,
        attack: Attack,
        averaging: Averaging,
        statistics: RunningStatistics,
        device: torch.device,
    ) -> None:
        self._backbone, self._averaging, self._device = backbone, averaging, device
        self.attack = attack
        self._statistics = statistics
        self._is_low = dtype_of(config.compute.train_precision) == torch.bfloat16
        is_alone = collectives.world_size() == 1
        self.objective = objective if is_alone else collectives.wrapped_in_ddp(objective, device)
        optimization = config.optimization
        self.optimizer = torch.optim.SGD(
            [parameter for parameter in objective.parameters() if parameter.requires_grad],
            lr=optimization.lr,
            momentum=optimization.momentum,
            weight_decay=optimization.weight_decay,
            fused=device.type == "cuda",
        )

    def __call__(
        self, x: Tensor, y: Tensor, *, noise: Tensor, denominator: float, further: dict[str, Any], timer: PhaseSeconds
    ) -> LossTerms:
        """Takes one step on this worker's rows of a global batch, and returns its loss terms.

        Args:
            x: [n, C, H, W] augmented images; n may be 0.
            y: [n] their labels.
            denominator: rows of the global batch over the number of workers.
        """
        with timer.phase("attack"):
            x_adv = self.attack(self._backbone, x, y, noise=noise)
        with timer.phase("step"), allow_tf32(self._device.type == "cuda"):
            with self.autocast():
                teacher = self._averaging.teacher_arguments(x)
                terms: LossTerms = self.objective(x, x_adv, y, denominator=denominator, **further, **teacher)
            self._statistics.start()
            self.optimizer.zero_grad(set_to_none=True)
            terms.total.backward()
            self._statistics.apply()
            self.optimizer.step()
            self._averaging.update()
        return terms

    def autocast(self) -> torch.autocast:
        """Matrix products in the training step's format, on float32 weights; losses are float32 in either."""
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._is_low)

    @property
    def lr(self) -> float:
        """Learning rate of the steps to come."""
        return float(self.optimizer.param_groups[0]["lr"])

    @lr.setter
    def lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
