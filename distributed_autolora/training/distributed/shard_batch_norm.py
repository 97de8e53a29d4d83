"""Batch norm over fixed shards of the global batch ("ghost batch norm", Hoffer et al., 2017).

Row i of a global batch belongs to shard i mod S. Worker w of W takes the whole shards w, w + W, ... (`worker_share`),
so that no statistic crosses workers, and none depends on their number.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distributed_autolora.config import OptimizationConfig
from distributed_autolora.training.distributed.batch_norm import (
    BatchNormOfWorkers,
    globalize_batch_norm,
    replace_batch_norms,
)
from distributed_autolora.training.distributed.collectives import StartedSum, rank, world_size


@dataclass(frozen=True)
class _Move:
    """What one forward of one batch norm found in this worker's shards, and the statistics that it moves.

    `sums` holds the sums over shards of means [C] and unbiased variances [C], and the number of shards with rows.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float | None
    sums: Tensor


class RunningStatistics:
    """The moves of running statistics that a step's forwards found: summed over the workers at once, and applied.

    Every forward moves them by the mean over all shards that have rows.
    """

    def __init__(self) -> None:
        self._moves: list[_Move] = []
        self._sum: StartedSum | None = None

    def add(self, norm: nn.Module, momentum: float | None, sums: Tensor) -> None:
        """Takes what a forward found; the buffers that `norm` has now are those that will move."""
        buffers: Any = norm  # those of a functional_call are gone when the moves are applied
        self._moves.append(
            _Move(buffers.running_mean, buffers.running_var, buffers.num_batches_tracked, momentum, sums)
        )

    def start(self) -> None:
        """Starts the one sum over the workers; it runs beside the backward pass."""
        if self._moves:
            self._sum = StartedSum(torch.cat([move.sums for move in self._moves]))

    @torch.no_grad()
    def apply(self) -> None:
        """Waits for the sum and moves the running statistics, alike on every worker, in the order of the forwards."""
        if self._sum is None:
            return
        totals = self._sum.wait().split([len(move.sums) for move in self._moves])
        for move, total in zip(self._moves, totals, strict=True):
            mean, variance = (total[:-1] / total[-1]).to(move.running_mean.dtype).chunk(2)
            move.num_batches_tracked.add_(1)
            momentum = move.momentum if move.momentum is not None else 1 / float(move.num_batches_tracked)
            move.running_mean.lerp_(mean, momentum)
            move.running_var.lerp_(variance, momentum)
        self.forget()

    def forget(self) -> None:
        """Drops what forwards found since the last step, such as a throw-away one."""
        self._moves, self._sum = [], None


class ShardBatchNorm(BatchNormOfWorkers):
    """Batch norm whose training statistics are those of each shard; its state is plain batch norm's.

    Args:
        like: the batch norm that it replaces.
        shards: shards that this worker owns, at least 1; row j of its rows is in its shard j mod `shards`.
        statistics: takes the moves of the running statistics.
    """

    def __init__(self, like: _BatchNorm, shards: int, statistics: RunningStatistics) -> None:
        super().__init__(like.num_features, like.eps, like.momentum)
        self.shards, self.statistics = shards, statistics

    def _normalized(self, input: Tensor) -> Tensor:  # noqa: A002
        self._check_input_dim(input)
        if not self.training:
            return super()._normalized(input)
        sums = self.weight.new_zeros(2 * self.num_features + 1)
        if len(input):
            out, mean, variance = _normalized_by_shard(input, self.shards, self.weight, self.bias, self.eps)
            if input.is_contiguous(memory_format=torch.channels_last):
                out = out.contiguous(memory_format=torch.channels_last)
            sums = torch.cat([mean.sum(0), variance.sum(0), sums.new_full((1,), len(mean))])
        else:  # the gradients of weight and bias are 0, but every worker has them
            shape = (1, -1, *[1] * (input.dim() - 2))
            out = (input * self.weight.view(shape) + self.bias.view(shape)).to(input.dtype)
        self.statistics.add(self, self.momentum, sums)
        return out


def _normalized_by_shard(
    x: Tensor, shards: int, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises [n, C, ...] rows, n at least 1, of which row j is in shard j mod `shards`.

    Returns them, and means and unbiased variances [s, C] of the s shards that have rows.
    """
    shards = min(shards, len(x))
    rows, longer = divmod(len(x), shards)
    if not longer:
        return _normalized_by_even_shard(x, shards, weight, bias, eps)
    # The first shards have one row more than the others.
    body, tail = x[: rows * shards].unflatten(0, (rows, shards)), x[rows * shards :]
    long = torch.cat([body[:, :longer].flatten(0, 1), tail])
    long, *of_long = _normalized_by_even_shard(long, longer, weight, bias, eps)
    short, *of_short = _normalized_by_even_shard(body[:, longer:].flatten(0, 1), shards - longer, weight, bias, eps)
    body = torch.cat([long[: rows * longer].unflatten(0, (rows, -1)), short.unflatten(0, (rows, -1))], 1)
    mean, variance = (torch.cat(pair) for pair in zip(of_long, of_short, strict=True))
    return torch.cat([body.flatten(0, 1), long[rows * longer :]]), mean, variance


def _normalized_by_even_shard(
    x: Tensor, shards: int, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_normalized_by_shard`, for shards of equally many rows: PyTorch's kernel takes shards as further channels."""
    channels = x.shape[1]
    folded = x
    if shards > 1:  # [rows * shards, C, ...] -> [rows, shards * C, ...], without a copy unless x is channels-last
        folded = x.unflatten(0, (-1, shards)).movedim((1, 2), (-2, -1)).flatten(-2).movedim(-1, 1)
    mean, variance = weight.new_zeros(2, shards * channels)
    weight, bias = weight.repeat(shards), bias.repeat(shards)
    # With momentum 1, running statistics become the batch's. F.batch_norm would refuse a single value a channel.
    out = torch.batch_norm(folded, weight, bias, mean, variance, True, 1.0, eps, torch.backends.cudnn.enabled)
    if folded.numel() == shards * channels:
        variance = torch.zeros_like(variance)  # of a single value; unbiased it would be 0 / 0
    if shards > 1:
        out = out.movedim(1, -1).unflatten(-1, (shards, channels)).movedim(-2, 1).flatten(0, 1).movedim(-1, 1)
    return out, mean.view(shards, channels), variance.view(shards, channels)


def distributed_batch_norm(module: nn.Module, optimization: OptimizationConfig) -> RunningStatistics:
    """Replaces every batch norm inside `module` by the one that is configured; parameters and names stay.

    Call it before optimizers and wrappers are made.

    Returns what has to be started after every forward in train mode and applied after its backward; it never has
    anything to do for batch norm over the global batch.

    Raises:
        ValueError: for more workers than shards, or for a batch norm without affine parameters or statistics (over the
            global batch only on several workers).
    """
    statistics, shards = RunningStatistics(), optimization.batch_norm_shards
    if optimization.batch_norm == "global":
        globalize_batch_norm(module)
        return statistics
    assert shards is not None
    if shards < world_size():
        raise ValueError(f"{world_size()} workers cannot own a whole shard each: there are {shards}")
    own = len(range(rank(), shards, world_size()))
    replace_batch_norms(module, lambda norm: ShardBatchNorm(norm, own, statistics), strict=True)
    return statistics
