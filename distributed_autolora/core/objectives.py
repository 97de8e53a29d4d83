"""The losses of robust fine-tuning, as named parts that are summed once.

Every part is a sum over the given rows divided by `denominator`, so that shards of a global batch add
up to exactly the loss of the whole.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from distributed_autolora.core.lora import BranchStatistics, LowRankBranch
from distributed_autolora.core.losses import LossTerms, check_soft_labels, float32_logits, soft_label_kl
from distributed_autolora.core.schedules import LossWeights
from distributed_autolora.core.twins import Twins

__all__ = ["AutoLoRa", "LossTerms", "Twins", "VanillaRFT", "soft_label_kl"]

BRANCH_BATCH_NORMS = ("shared", "own")


class VanillaRFT(nn.Module):
    """Vanilla robust fine-tuning: CE on natural images plus `trades_beta` times KL (Eq. 1).

    Raises:
        ValueError: for unknown soft labels.
    """

    def __init__(self, backbone: nn.Module, *, trades_beta: float = 6.0, soft_labels: str = "joint") -> None:
        super().__init__()
        self.backbone = backbone
        self.trades_beta = trades_beta
        self.soft_labels = check_soft_labels(soft_labels)

    def forward(
        self,
        x: Tensor,
        x_adv: Tensor,
        y: Tensor,
        *,
        denominator: float | None = None,
        teacher_logits: Tensor | None = None,
    ) -> LossTerms:
        """Returns the parts "natural" and "kl".

        Args:
            denominator: what sums over rows are divided by; None: n.
            teacher_logits: of the natural images, in place of the soft labels in KL; None: none.
        """
        divisor = len(y) if denominator is None else denominator
        adversarial = float32_logits(self.backbone(x_adv))
        natural = float32_logits(self.backbone(x))
        kl = soft_label_kl(natural, adversarial, self.soft_labels, teacher_logits).sum()
        return LossTerms(
            {"natural": F.cross_entropy(natural, y, reduction="sum") / divisor, "kl": self.trades_beta * kl / divisor}
        )


class AutoLoRa(nn.Module):
    """Robust fine-tuning disentangled by a low-rank branch (Eq. 5).

    The branch learns the natural images; the feature extractor learns only the adversarial ones,
    guided by the branch's soft labels.

    Args:
        weights: lambda1 and lambda2; may be set anew every epoch.
        branch_batch_norm: "shared": natural and adversarial images move the same running statistics; "own": natural
            images move statistics of the branch's own, which its logits are computed with in eval mode.

    Raises:
        ValueError: for unknown soft labels or batch norm, or statistics of its own where there is no batch norm.
    """

    def __init__(
        self,
        backbone: nn.Module,
        branch: LowRankBranch,
        *,
        weights: LossWeights,
        soft_labels: str = "joint",
        branch_batch_norm: str = "shared",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.branch = branch
        self.weights = weights
        self.soft_labels = check_soft_labels(soft_labels)
        if branch_batch_norm not in BRANCH_BATCH_NORMS:
            raise ValueError(f'branch_batch_norm is "{branch_batch_norm}": it must be one of {BRANCH_BATCH_NORMS}')
        self.statistics = BranchStatistics(backbone) if branch_batch_norm == "own" else None

    def natural_logits(self, x: Tensor) -> Tensor:
        """Returns the logits of the low-rank branch."""
        state = self.branch.natural_parameters(self.backbone)
        if self.statistics is not None:
            state |= self.statistics.by_name()
        return float32_logits(functional_call(self.backbone, state, (x,)))

    def forward(
        self,
        x: Tensor,
        x_adv: Tensor,
        y: Tensor,
        *,
        denominator: float | None = None,
        teacher_logits: Tensor | None = None,
    ) -> LossTerms:
        """Returns the parts "natural", "adversarial" and "kl" for the arguments of `VanillaRFT.forward`."""
        divisor = len(y) if denominator is None else denominator
        natural = self.natural_logits(x)
        adversarial = float32_logits(self.backbone(x_adv))
        natural_ce = F.cross_entropy(natural, y, reduction="sum") / divisor
        adversarial_ce = F.cross_entropy(adversarial, y, reduction="sum") / divisor
        kl = soft_label_kl(natural, adversarial, self.soft_labels, teacher_logits).sum() / divisor
        return LossTerms(
            {
                "natural": self.weights.natural_weight * natural_ce,
                "adversarial": (1 - self.weights.natural_weight) * adversarial_ce,
                "kl": self.weights.kl_weight * kl,
            }
        )
