"""TWINS: robust fine-tuning with a second path that keeps the pre-trained batch-norm statistics (Eq. 2)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from distributed_autolora.core.attacks import eval_mode
from distributed_autolora.core.lora import dotless, dotted
from distributed_autolora.core.losses import LossTerms, check_soft_labels, float32_logits, soft_label_kl


class _FrozenNorm(nn.Module):
    """A trainable affine and the pre-trained statistics of one batch norm, both copied: its frozen path."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, batch_norm: _BatchNorm) -> None:
        super().__init__()
        if batch_norm.affine:
            self.weight = nn.Parameter(batch_norm.weight.detach().clone())
            self.bias = nn.Parameter(batch_norm.bias.detach().clone())
        assert batch_norm.running_mean is not None
        assert batch_norm.running_var is not None
        self.register_buffer("running_mean", batch_norm.running_mean.detach().clone())
        self.register_buffer("running_var", batch_norm.running_var.detach().clone())


class Twins(nn.Module):
    """Vanilla RFT on two paths that share everything but batch norm (Eq. 2).

    The adaptive path is the backbone itself. The frozen path always normalises with the statistics
    that the backbone had when this was built, and has a trainable affine of its own. The first half
    of the global batch takes the frozen path, the rest the adaptive one. CE is a mean over a half; KL
    is a sum over a half divided by all rows, as released, so that its effective weight is half of
    `trades_beta`. `twins_gamma` is the weight of the frozen path.

    Raises:
        ValueError: for unknown soft labels, or a backbone without batch-norm statistics.
    """

    def __init__(
        self, backbone: nn.Module, *, twins_gamma: float = 1.0, trades_beta: float = 6.0, soft_labels: str = "joint"
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.twins_gamma = twins_gamma
        self.trades_beta = trades_beta
        self.soft_labels = check_soft_labels(soft_labels)
        self.frozen = nn.ModuleDict(
            {dotless(name): _FrozenNorm(batch_norm) for name, batch_norm in _batch_norms(backbone).items()}
        )

    def frozen_state(self) -> dict[str, Tensor]:
        """Returns the frozen path's affine and statistics under the names of the backbone's own."""
        return {
            f"{dotted(key)}.{name}": tensor
            for key, batch_norm in self.frozen.items()
            for name, tensor in (*batch_norm.named_parameters(), *batch_norm.named_buffers())
        }

    def frozen_logits(self, x: Tensor) -> Tensor:
        """Returns the logits of the frozen path, in train and eval mode."""
        with eval_mode(self.backbone, _BatchNorm):
            return float32_logits(functional_call(self.backbone, self.frozen_state(), (x,)))

    def forward(
        self,
        x: Tensor,
        x_adv: Tensor,
        y: Tensor,
        *,
        denominator: float | None = None,
        frozen_rows: int | None = None,
        global_rows: int | None = None,
        teacher_logits: Tensor | None = None,
    ) -> LossTerms:
        """Returns the parts "natural" and "kl" of the adaptive path, "natural_frozen" and "kl_frozen".

        A worker whose share of a half is empty runs that path all the same: batch norm may hold
        collectives, and every parameter takes part in the step.

        Args:
            denominator: rows of the global batch over the number of workers; None: n.
            frozen_rows: how many of the first rows are in the first half of the global batch; None: n // 2.
            global_rows: rows of the global batch, at least 1; None: n, for one process.
            teacher_logits: of the natural images, in place of both paths' soft labels; None: none.

        Raises:
            ValueError: for frozen rows outside [0, n], or a denominator other than n without `global_rows`.
        """
        divisor = len(y) if denominator is None else denominator
        cut, share, frozen_share = _halves(len(y), divisor, frozen_rows, global_rows)
        ce, kl = self._sums(self._adaptive_logits, slice(cut, None), x, x_adv, y, teacher_logits)
        frozen_ce, frozen_kl = self._sums(self.frozen_logits, slice(cut), x, x_adv, y, teacher_logits)
        return LossTerms(
            {
                "natural": ce / share,
                "natural_frozen": self.twins_gamma * frozen_ce / frozen_share,
                "kl": self.trades_beta * kl / divisor,
                "kl_frozen": self.twins_gamma * self.trades_beta * frozen_kl / divisor,
            }
        )

    def _adaptive_logits(self, x: Tensor) -> Tensor:
        return float32_logits(self.backbone(x))

    def _sums(
        self,
        logits: Callable[[Tensor], Tensor],
        rows: slice,
        x: Tensor,
        x_adv: Tensor,
        y: Tensor,
        teacher_logits: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the summed cross-entropy and KL of one path and its rows, the adversarial forward first."""
        adversarial = logits(x_adv[rows])
        natural = logits(x[rows])
        teacher = None if teacher_logits is None else teacher_logits[rows]
        ce = F.cross_entropy(natural, y[rows], reduction="sum")
        return ce, soft_label_kl(natural, adversarial, self.soft_labels, teacher).sum()


def _halves(n: int, divisor: float, frozen_rows: int | None, global_rows: int | None) -> tuple[int, float, float]:
    """Returns how many of n rows are in the frozen half, and the denominators of the adaptive and the frozen CE."""
    if global_rows is None and divisor != n:
        raise ValueError(f"denominator is {divisor} for {n} rows: give global_rows too")
    cut = n // 2 if frozen_rows is None else frozen_rows
    if not 0 <= cut <= n:
        raise ValueError(f"frozen_rows is {cut}: it must be in [0, {n}]")
    rows = n if global_rows is None else global_rows
    # The frozen half of a single row is empty and its sums are 0, whatever they are divided by.
    frozen_half, adaptive_half = max(1, rows // 2), rows - rows // 2
    return cut, divisor * adaptive_half / rows, divisor * frozen_half / rows


def _batch_norms(backbone: nn.Module) -> dict[str, _BatchNorm]:
    found = {name: module for name, module in backbone.named_modules() if isinstance(module, _BatchNorm)}
    if not found:
        raise ValueError(
            f"TWINS needs batch norm: {type(backbone).__name__} has none; choose the method autolora or vanilla"
        )
    for name, module in found.items():
        if module.running_mean is None:
            raise ValueError(f"TWINS needs batch norm with running statistics: {name} has none")
    return found
