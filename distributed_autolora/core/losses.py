"""What the objectives share: named parts that are summed once, and the divergence between soft labels."""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

SOFT_LABELS = ("joint", "detached")


@dataclass
class LossTerms:
    """The parts of a loss, each already weighted; scalars on the model's device."""

    parts: dict[str, Tensor]

    @cached_property
    def total(self) -> Tensor:
        """The sum of the parts."""
        return torch.stack(list(self.parts.values())).sum()


def soft_label_kl(
    natural_logits: Tensor, adversarial_logits: Tensor, soft_labels: str, teacher_logits: Tensor | None = None
) -> Tensor:
    """Returns the KL divergence of each row from natural to adversarial class probabilities, [n].

    Args:
        natural_logits: the soft labels.
        soft_labels: "joint" (as released: the gradient reaches both) or "detached".
        teacher_logits: the soft labels in place of `natural_logits`, never trained; None: no teacher.
    """
    if teacher_logits is not None:
        natural_logits = float32_logits(teacher_logits).detach()
    elif soft_labels == "detached":
        natural_logits = natural_logits.detach()
    return F.kl_div(
        adversarial_logits.log_softmax(1), natural_logits.log_softmax(1), reduction="none", log_target=True
    ).sum(1)


def check_soft_labels(soft_labels: str) -> str:
    """Returns `soft_labels`.

    Raises:
        ValueError: when it is not one of `SOFT_LABELS`.
    """
    if soft_labels not in SOFT_LABELS:
        raise ValueError(f'soft_labels is "{soft_labels}": it must be one of {SOFT_LABELS}')
    return soft_labels


def float32_logits(logits: Tensor) -> Tensor:
    """Losses are computed in float32 whatever autocast made of the logits."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
