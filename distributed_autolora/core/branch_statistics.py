"""Batch-norm statistics that the natural branch keeps for itself."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class BranchStatistics(nn.Module):
    """Owns running statistics for every batch norm of a backbone, which start as copies of the backbone's.

    Natural images then move these, and adversarial images alone move the backbone's. The affine parameters stay
    shared.

    Args:
        backbone: the classifier.

    Raises:
        ValueError: for a backbone without batch-norm statistics.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        for name, module in backbone.named_modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                for buffer in _BUFFERS:
                    self.register_buffer(_key(f"{name}.{buffer}"), module.get_buffer(buffer).detach().clone())
        if not self._buffers:
            raise ValueError(
                f'branch_batch_norm is "own", but {type(backbone).__name__} has no batch norm with running statistics: '
                'set method.branch_batch_norm to "shared"'
            )

    def by_name(self) -> dict[str, Tensor]:
        """Returns the statistics under the names of the backbone's own; a forward in train mode moves them in place."""
        return {_name(key): buffer for key, buffer in self.named_buffers()}


def _key(name: str) -> str:
    """Names of buffers have no dots."""
    return name.replace(".", "/")


def _name(key: str) -> str:
    return key.replace("/", ".")
