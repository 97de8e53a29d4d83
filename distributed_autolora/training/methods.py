"""From a config's words to objectives, schedules and attacks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from distributed_autolora.config import AttackConfig, ExperimentConfig
from distributed_autolora.core.attacks import pgd
from distributed_autolora.core.lora import LowRankBranch
from distributed_autolora.core.objectives import AutoLoRa, VanillaRFT
from distributed_autolora.core.schedules import LossWeights, RobustAccuracyHalving, StepDecay
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.models import Classifier

Attack = Callable[..., Tensor]
Schedule = RobustAccuracyHalving | StepDecay


def _autolora(config: ExperimentConfig, backbone: Classifier) -> nn.Module:
    method = config.method
    branch = LowRankBranch(backbone, method.lora_rank, method.lora_scope, head=backbone.head_name)
    return AutoLoRa(backbone, branch, weights=LossWeights(1.0, 0.0), soft_labels=method.soft_labels)


def _vanilla(config: ExperimentConfig, backbone: Classifier) -> nn.Module:
    return VanillaRFT(backbone, trades_beta=config.method.trades_beta, soft_labels=config.method.soft_labels)


METHODS: dict[str, Callable[[ExperimentConfig, Classifier], nn.Module]] = {
    "autolora": _autolora,
    "vanilla": _vanilla,
}


def build_objective(config: ExperimentConfig, backbone: Classifier) -> nn.Module:
    """Returns the objective that the config names; it owns `backbone`."""
    return METHODS[config.method.name](config, backbone)


def build_schedule(config: ExperimentConfig) -> Schedule:
    """Returns the learning-rate schedule that the config names, before its first epoch."""
    schedule, optimization = config.schedule, config.optimization
    if schedule.name == "step_decay":
        return StepDecay(optimization.lr, optimization.epochs)
    return RobustAccuracyHalving(optimization.lr, schedule.interval, schedule.rule, schedule.min_lr)


def build_attack(config: ExperimentConfig, attack: AttackConfig) -> Attack:
    """Returns attack(model, x, y, *, noise=None) -> x_adv."""
    threat_model = ThreatModel(config.threat_model.norm, config.threat_model.epsilon)

    def search(model: nn.Module, x: Tensor, y: Tensor, *, noise: Tensor | None = None) -> Tensor:
        return pgd(
            model,
            x,
            y,
            threat_model=threat_model,
            num_steps=attack.num_steps,
            step_size=attack.step_size,
            random_start=attack.random_start,
            noise=noise,
        )

    return search


def attack_name(attack: AttackConfig) -> str:
    """Returns the name that accuracies under this attack are logged under."""
    return f"pgd{attack.num_steps}"


def attack_dtype(config: ExperimentConfig) -> torch.dtype:
    """Returns the number format of the attack network, chosen when the run was created.

    Raises:
        ValueError: while it is still "auto".
    """
    if config.compute.attack_precision == "auto":
        raise ValueError("compute.attack_precision must be chosen before training starts")
    return torch.bfloat16 if config.compute.attack_precision == "bfloat16" else torch.float32
