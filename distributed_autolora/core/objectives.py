"""The losses of robust fine-tuning, as named parts that are summed once.

Every part is a sum over the given rows divided by `denominator`, so that shards of a global batch add
up to exactly the loss of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from distributed_autolora.core.lora import LowRankBranch
from distributed_autolora.core.schedules import LossWeights

SOFT_LABELS = ("joint", "detached")


@dataclass
class LossTerms:
    """The parts of a loss, each already weighted; scalars on the model's device."""

    parts: dict[str, Tensor]

    @cached_property
    def total(self) -> Tensor:
        """The sum of the parts."""
        return torch.stack(list(self.parts.values())).sum()


def soft_label_kl(natural_logits: Tensor, adversarial_logits: Tensor, soft_labels: str) -> Tensor:
    """Returns the KL divergence of each row from natural to adversarial class probabilities, [n].

    Args:
        natural_logits: [n, classes], the soft labels.
        adversarial_logits: [n, classes].
        soft_labels: "joint" (as released: the gradient reaches both) or "detached".
    """
    if soft_labels == "detached":
        natural_logits = natural_logits.detach()
    return F.kl_div(
        adversarial_logits.log_softmax(1), natural_logits.log_softmax(1), reduction="none", log_target=True
    ).sum(1)


def _check_soft_labels(soft_labels: str) -> str:
    if soft_labels not in SOFT_LABELS:
        raise ValueError(f'soft_labels is "{soft_labels}": it must be one of {SOFT_LABELS}')
    return soft_labels


class VanillaRFT(nn.Module):
    """Vanilla robust fine-tuning: CE on natural images plus beta times KL (Eq. 1).

    Args:
        backbone: any classifier with its head.
        trades_beta: weight of the KL part.
        soft_labels: "joint" or "detached".

    Raises:
        ValueError: for unknown soft labels.
    """

    def __init__(self, backbone: nn.Module, *, trades_beta: float = 6.0, soft_labels: str = "joint") -> None:
        super().__init__()
        self.backbone = backbone
        self.trades_beta = trades_beta
        self.soft_labels = _check_soft_labels(soft_labels)

    def forward(self, x: Tensor, x_adv: Tensor, y: Tensor, *, denominator: float | None = None) -> LossTerms:
        """Returns the parts "natural" and "kl".

        Args:
            x: [n, C, H, W] natural images.
            x_adv: their adversarial variants.
            y: [n] labels.
            denominator: what sums over rows are divided by; None: n.
        """
        divisor = len(y) if denominator is None else denominator
        adversarial = _logits(self.backbone(x_adv))
        natural = _logits(self.backbone(x))
        kl = soft_label_kl(natural, adversarial, self.soft_labels).sum()
        return LossTerms(
            {
                "natural": F.cross_entropy(natural, y, reduction="sum") / divisor,
                "kl": self.trades_beta * kl / divisor,
            }
        )


class AutoLoRa(nn.Module):
    """Robust fine-tuning disentangled by a low-rank branch (Eq. 5).

    The branch learns the natural images; the feature extractor learns only the adversarial ones,
    guided by the branch's soft labels.

    Args:
        backbone: any classifier with its head; its parameters are the feature extractor's and head's.
        branch: the low-rank branch made for this backbone.
        weights: lambda1 and lambda2; may be set anew every epoch.
        soft_labels: "joint" or "detached".

    Raises:
        ValueError: for unknown soft labels.
    """

    def __init__(
        self, backbone: nn.Module, branch: LowRankBranch, *, weights: LossWeights, soft_labels: str = "joint"
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.branch = branch
        self.weights = weights
        self.soft_labels = _check_soft_labels(soft_labels)

    def natural_logits(self, x: Tensor) -> Tensor:
        """Returns the [n, classes] logits of the low-rank branch for [n, C, H, W] images."""
        return _logits(functional_call(self.backbone, self.branch.natural_parameters(self.backbone), (x,)))

    def forward(self, x: Tensor, x_adv: Tensor, y: Tensor, *, denominator: float | None = None) -> LossTerms:
        """Returns the parts "natural", "adversarial" and "kl".

        Args:
            x: [n, C, H, W] natural images.
            x_adv: their adversarial variants.
            y: [n] labels.
            denominator: what sums over rows are divided by; None: n.
        """
        divisor = len(y) if denominator is None else denominator
        natural = self.natural_logits(x)
        adversarial = _logits(self.backbone(x_adv))
        natural_ce = F.cross_entropy(natural, y, reduction="sum") / divisor
        adversarial_ce = F.cross_entropy(adversarial, y, reduction="sum") / divisor
        kl = soft_label_kl(natural, adversarial, self.soft_labels).sum() / divisor
        return LossTerms(
            {
                "natural": self.weights.natural_weight * natural_ce,
                "adversarial": (1 - self.weights.natural_weight) * adversarial_ce,
                "kl": self.weights.kl_weight * kl,
            }
        )


def _logits(logits: Tensor) -> Tensor:
    """Losses are computed in float32 whatever autocast made of the logits."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
