"""Batch norm whose training statistics are those of the global batch."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distributed_autolora.training.distributed.collectives import gather_vectors, world_size


class _NormalizeOverWorkers(torch.autograd.Function):
    """Batch norm in train mode with the mean and variance of the rows of all workers.

    Forward gathers (mean, variance, count), backward (d bias, d weight): one collective each. A worker
    without rows takes part in both. Around them PyTorch's eval-mode kernels do the work: they
    normalise with given statistics, and their backward leaves out only the terms of the statistics.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels, wide = x.shape[1], weight.dtype
        own = torch.zeros(2 * channels + 1, dtype=wide, device=x.device)
        if x.numel():
            # Without running statistics of their own, those of a bfloat16 batch would come back rounded to bfloat16.
            unused = own.new_zeros(channels), own.new_ones(channels)
            own[:channels], own[channels:-1] = torch.batch_norm_update_stats(x, *unused, 0.0)
            own[-1] = x.numel() // channels
        shards = gather_vectors(own)
        counts, total = shards[:, -1:], shards[:, -1].sum()
        means, variances = shards[:, :channels], shards[:, channels:-1]
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean) ** 2)).sum(0) / total
        out = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps) if x.numel() else x.clone()
        ctx.save_for_backward(x, weight, mean, variance, total)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, total)
        return out, mean, variance, total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, variance, total = ctx.saved_tensors
        d_x, d_weight, d_bias = torch.zeros_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        if x.numel():
            unused = mean.new_empty(0)  # CUDA's channels-last kernel refuses None here
            d_x, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
                gradients[0], x, weight, mean, variance, unused, unused, False, ctx.eps, [True, True, True]
            )
        bias_sum, weight_sum = gather_vectors(torch.cat([d_bias, d_weight])).sum(0).chunk(2)
        if x.numel():
            # d x = eval-mode gradient - weight / std * (mean of d out + normalised x * mean of d out * normalised x)
            inverse_std = torch.rsqrt(variance + ctx.eps)
            slope = weight * inverse_std**2 * weight_sum / total
            offset = weight * inverse_std * bias_sum / total - slope * mean
            # slope * x + offset in one pass, whatever the format of x; torch 2.11's F.batch_norm refuses an eps of 0
            statistics = torch.zeros_like(mean), torch.ones_like(mean)
            d_x = d_x - torch.batch_norm(x, slope, offset, *statistics, False, 0.0, 0.0, torch.backends.cudnn.enabled)
        return d_x, d_weight, d_bias, None


class BatchNormOfWorkers(_BatchNorm):
    """A batch norm that says for itself what its training statistics are; its state is plain batch norm's.

    An activation that timm's batch norms carry behind them, as `act`, is applied here too.
    """

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        if input.dim() < 2:
            raise ValueError(f"batch norm expects at least 2 dimensions, not {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Normalises [n, C, ...] images, with running statistics in eval mode."""
        out = self._normalized(input)
        activation = getattr(self, "act", None)
        return activation(out) if isinstance(activation, nn.Module) else out

    def _normalized(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input)


class GlobalBatchNorm(BatchNormOfWorkers):
    """Batch norm whose training statistics are those of the global batch."""

    def _normalized(self, input: Tensor) -> Tensor:  # noqa: A002
        self._check_input_dim(input)
        # PyTorch's own refuses a single value a channel, as of one row; over several workers such a batch is legal.
        if not self.training or (world_size() == 1 and input.numel() > input.shape[1]):
            return super()._normalized(input)
        out, mean, variance, total = _NormalizeOverWorkers.apply(input, self.weight, self.bias, self.eps)
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            unbiased = variance * (total / (total - 1).clamp_min(1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        return out  # type: ignore[no-any-return]


def globalize_batch_norm(module: nn.Module) -> None:
    """Replaces every batch norm inside `module` by one over the global batch; parameters and names stay.

    Call it before optimizers and wrappers are made. Batch norms without affine or statistics stay on one worker.

    Raises:
        ValueError: for such a batch norm on several workers.
    """
    replace_batch_norms(
        module, lambda norm: GlobalBatchNorm(norm.num_features, norm.eps, norm.momentum), strict=world_size() > 1
    )


def replace_batch_norms(module: nn.Module, make: Callable[[_BatchNorm], BatchNormOfWorkers], *, strict: bool) -> None:
    """Replaces every batch norm inside `module` by what `make` returns, which gets its state.

    Raises:
        ValueError: if `strict`, for a batch norm without affine or statistics; else it stays.
    """
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and not isinstance(child, BatchNormOfWorkers):
            if not child.affine or not child.track_running_stats:
                if not strict:
                    continue
                raise ValueError(f"batch norm {name} has no affine parameters or no running statistics")
            replacement = make(child)
            replacement.weight, replacement.bias = child.weight, child.bias
            for buffer_name, buffer in child.named_buffers():
                setattr(replacement, buffer_name, buffer)
            replacement.training = child.training
            if isinstance(activation := getattr(child, "act", None), nn.Module):
                replacement.act = activation
            setattr(module, name, replacement)
        else:
            replace_batch_norms(child, make, strict=strict)
