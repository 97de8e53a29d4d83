"""lambda1 and lambda2 of an objective that has them: fixed, or set every epoch (Eq. 6 and 7)."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from distributed_autolora.config import ExperimentConfig, MethodConfig
from distributed_autolora.core.schedules import LossWeights
from distributed_autolora.training.methods.registry import METHODS


@runtime_checkable
class AdaptsLossWeights(Protocol):
    """What an objective offers whose method is registered with `adapts_loss_weights`."""

    weights: LossWeights
    """Weights of the loss terms from the next step on."""

    def natural_logits(self, x: Tensor) -> Tensor:
        """Returns the [n, classes] logits whose accuracy on training images sets the weights."""


def follows_accuracy(config: ExperimentConfig) -> bool:
    """Tells whether the natural-branch accuracy has to be measured: some weight is not fixed."""
    method = config.method
    return METHODS[method.name].adapts_loss_weights and None in (method.natural_weight, method.kl_weight)


def set_weights(objective: nn.Module, method: MethodConfig, natural_branch_accuracy: float | None) -> None:
    """Sets the weights that are fixed as configured, and the others from the accuracy where there is one."""
    if not isinstance(objective, AdaptsLossWeights):
        return
    weights = objective.weights
    if natural_branch_accuracy is not None:
        weights = LossWeights.from_natural_accuracy(natural_branch_accuracy, method.sharpening, method.kl_weight_max)
    fixed = {"natural_weight": method.natural_weight, "kl_weight": method.kl_weight}
    objective.weights = replace(weights, **{name: value for name, value in fixed.items() if value is not None})


def weights_of(objective: nn.Module) -> LossWeights | None:
    """Returns the weights of the next step; None for an objective without."""
    return objective.weights if isinstance(objective, AdaptsLossWeights) else None
