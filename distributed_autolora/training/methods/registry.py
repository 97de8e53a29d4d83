"""From a config's words to networks, objectives, schedules and attacks. `METHODS` is where a method is registered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from distributed_autolora.config import ExperimentConfig, MethodConfig
from distributed_autolora.core.lora import LowRankBranch
from distributed_autolora.core.objectives import AutoLoRa, VanillaRFT
from distributed_autolora.core.schedules import LossWeights, RobustAccuracyHalving, StepDecay
from distributed_autolora.core.twins import Twins
from distributed_autolora.errors import UserError
from distributed_autolora.models import Classifier, build
from distributed_autolora.records.reader import nearest
from distributed_autolora.training.methods.weight_averaging import has_teacher

Schedule = RobustAccuracyHalving | StepDecay


@runtime_checkable
class AdaptsLossWeights(Protocol):
    """What an objective offers whose method is registered with `adapts_loss_weights`."""

    weights: LossWeights
    """Weights of the loss terms from the next step on."""

    def natural_logits(self, x: Tensor) -> Tensor:
        """Returns the [n, classes] logits whose accuracy on training images sets the weights."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to fine-tune: its objective, and what a run must know beside it."""

    build: Callable[[ExperimentConfig, Classifier], nn.Module]
    """Returns the objective, which owns the backbone: objective(x, x_adv, y, *, denominator) -> LossTerms."""
    forward_passes: int = 2
    """Passes of one training image through the network in a step, the attack's not counted."""
    backward_passes: int = 2
    """As `forward_passes`, backwards."""
    adapts_loss_weights: bool = False
    """The objective has `weights` and `natural_logits` (`AdaptsLossWeights`), and Eq. 6 and 7 set its weights."""
    step_arguments: Callable[[int, Sequence[int]], dict[str, Any]] = lambda *_: {}
    """Further keyword arguments of the objective, from (rows of the global batch, which of them this worker has)."""
    has_natural_branch: bool = False
    """The objective has a forward of its own for natural images, which `method.branch_batch_norm` applies to."""
    takes_teacher: bool = False
    """The objective takes `teacher_logits`, which replace the soft labels of its KL term."""
    has_gradient_similarity: bool = False
    """Both of its loss terms move the feature extractor, so that the angle between them means something."""


def _autolora(config: ExperimentConfig, backbone: Classifier) -> nn.Module:
    method = config.method
    branch = LowRankBranch(backbone, method.lora_rank, method.lora_scope, head=backbone.head_name)
    return AutoLoRa(
        backbone,
        branch,
        weights=LossWeights(1.0, 0.0),
        soft_labels=method.soft_labels,
        branch_batch_norm=method.branch_batch_norm,
    )


def _vanilla(config: ExperimentConfig, backbone: Classifier) -> nn.Module:
    return VanillaRFT(backbone, trades_beta=config.method.trades_beta, soft_labels=config.method.soft_labels)


def _twins(config: ExperimentConfig, backbone: Classifier) -> nn.Module:
    own = config.method
    return Twins(backbone, twins_gamma=own.twins_gamma, trades_beta=own.trades_beta, soft_labels=own.soft_labels)


def _frozen_rows(global_rows: int, own: Sequence[int]) -> dict[str, Any]:
    """The first half of the global batch takes the frozen path; these are this worker's rows of it."""
    return {"frozen_rows": sum(row < global_rows // 2 for row in own), "global_rows": global_rows}


METHODS: dict[str, Method] = {
    "autolora": Method(build=_autolora, adapts_loss_weights=True, has_natural_branch=True, takes_teacher=True),
    "vanilla": Method(build=_vanilla, has_gradient_similarity=True, takes_teacher=True),
    "twins": Method(build=_twins, step_arguments=_frozen_rows, has_gradient_similarity=True, takes_teacher=True),
}


def method_of(config: ExperimentConfig) -> Method:
    """Returns the registered method that the config names, after checking that its settings apply to it.

    Raises:
        UserError: for an unknown name (says the nearest known one), or settings that mean nothing to the method.
    """
    name, known = config.method.name, list(METHODS)
    if name not in METHODS:
        raise UserError(f'There is no method "{name}".{nearest(name, known)} Known methods: {", ".join(known)}.')
    method = METHODS[name]
    for field in ("natural_weight", "kl_weight"):
        if getattr(config.method, field) is not None and not method.adapts_loss_weights:
            able = _methods_with("adapts_loss_weights")
            raise UserError(f"method.{field} is set, but {name} has no such weight: only {able} does.")
    if config.evaluation.gradient_similarity_images and not method.has_gradient_similarity:
        raise UserError(
            f"evaluation.gradient_similarity_images is {config.evaluation.gradient_similarity_images}, but gradient "
            f"similarity is not defined for {name}: set it to 0, or choose one of: "
            f"{_methods_with('has_gradient_similarity')}."
        )
    _check_switches(config, method)
    return method


def _check_switches(config: ExperimentConfig, method: Method) -> None:
    name, average = config.method.name, config.method.weight_average
    if config.method.branch_batch_norm == "own" and not method.has_natural_branch:
        raise UserError(
            f'method.branch_batch_norm is "own", but {name} has no natural branch: only '
            f'{_methods_with("has_natural_branch")} does. Set it to "shared".'
        )
    if has_teacher(config) and not method.takes_teacher:
        raise UserError(
            f'method.weight_average is "{average}", but {name} has no soft labels that a teacher could give: set it to '
            f'"deployed" or "none", or choose one of: {_methods_with("takes_teacher")}.'
        )
    if has_teacher(config) and config.evaluation.gradient_similarity_images:
        raise UserError(
            f'method.weight_average is "{average}", but gradient similarity is defined on a method\'s own soft labels: '
            'set evaluation.gradient_similarity_images to 0, or method.weight_average to "deployed" or "none".'
        )


def _methods_with(ability: str) -> str:
    return ", ".join(name for name, method in METHODS.items() if getattr(method, ability))


def fresh_classifier(config: ExperimentConfig, num_classes: int, weights: str | None) -> Classifier:
    """Returns the pre-trained backbone with a head drawn from the seed; the same on every worker."""
    torch.manual_seed(config.seed)
    model = config.model
    return build(
        model.backbone,
        num_classes,
        weights,
        mean=model.mean,
        std=model.std,
        input_size=model.input_size,
        weights_digest=model.weights_digest,
        allow_pickle=model.allow_pickle,
    )


def build_objective(config: ExperimentConfig, backbone: Classifier) -> nn.Module:
    """Returns the objective that the config names; it owns `backbone`.

    Raises:
        UserError: for an unknown method, or a backbone that it cannot work on.
    """
    method = method_of(config)
    try:
        return method.build(config, backbone)
    except ValueError as error:
        raise UserError(
            f"{config.method.name} does not work on {config.model.backbone}: {error}. "
            "Change method.name or model.backbone."
        ) from error


def build_schedule(config: ExperimentConfig) -> Schedule:
    """Returns the learning-rate schedule that the config names, before its first epoch."""
    schedule, optimization = config.schedule, config.optimization
    if schedule.name == "step_decay":
        return StepDecay(optimization.lr, optimization.epochs, schedule.decay_at)
    return RobustAccuracyHalving(optimization.lr, schedule.interval, schedule.rule, schedule.min_lr)


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
