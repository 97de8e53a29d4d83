"""Batch norm over shards: each shard is normalised by itself, whatever their sizes, in one pass."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distributed_autolora.config import OptimizationConfig
from distributed_autolora.training.distributed.shard_batch_norm import distributed_batch_norm

CHANNELS = 5


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain(momentum: float | None) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(CHANNELS, momentum=momentum).double()
    with torch.no_grad():
        norm.weight.copy_(drawn(CHANNELS, seed=1))
        norm.bias.copy_(drawn(CHANNELS, seed=2))
    return norm


def by_loop(norm: nn.BatchNorm2d, x: Tensor, shards: int) -> Tensor:
    """Normalises and moves as defined: PyTorch's own batch norm on one shard after the other."""
    out, found = torch.zeros_like(x), []
    for own in (slice(shard, None, shards) for shard in range(min(shards, len(x)))):
        one = nn.BatchNorm2d(CHANNELS, momentum=1.0).double()
        if x[own].numel() > CHANNELS:
            one.weight, one.bias = norm.weight, norm.bias
            out[own] = one(x[own])
        else:  # a single value a channel, which PyTorch refuses: it is its own mean
            out[own] = 0 * x[own] * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
            one.running_mean, one.running_var = x[own].detach().flatten(), torch.zeros(CHANNELS, dtype=x.dtype)
        found.append((one.running_mean, one.running_var))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    share = norm.momentum if norm.momentum is not None else 1 / int(norm.num_batches_tracked)
    mean, variance = (torch.stack([one[part] for one in found]).mean(0) for part in (0, 1))  # type: ignore[misc]
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(variance, share)
    return out


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("rows", [12, 8, 7, 5, 4, 3, 1])
@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("side", [3, 1])
def test_each_shard_is_normalised_as_pytorch_normalises_it_alone(
    memory_format: torch.memory_format, rows: int, shards: int, side: int
) -> None:
    """Also ragged ones, those of one row and of one value, and where shards are left without rows."""
    momentum = None if rows == 7 else 0.3
    slow, fast = plain(momentum), nn.Sequential(plain(momentum))
    optimization = OptimizationConfig(batch_norm="shards", batch_norm_shards=shards)
    statistics = distributed_batch_norm(fast, optimization)
    for step in range(2):
        x, wanted = drawn(rows, CHANNELS, side, side, seed=3 + step), drawn(rows, CHANNELS, side, side, seed=9)
        ours, theirs = (x.clone(memory_format=memory_format).requires_grad_() for _ in range(2))
        out, expected = fast(ours), by_loop(slow, theirs, shards)
        assert out.is_contiguous(memory_format=memory_format), "the next layer's kernel depends on it"
        torch.testing.assert_close(out, expected)
        for one in (out, expected):
            (one - wanted).pow(3).sum().backward()
        statistics.start()
        statistics.apply()
        torch.testing.assert_close(ours.grad, theirs.grad)
    norm = fast[0]
    assert isinstance(norm, _BatchNorm)
    for name in ("weight", "bias"):
        torch.testing.assert_close(getattr(norm, name).grad, getattr(slow, name).grad)
    torch.testing.assert_close(dict(norm.named_buffers()), dict(slow.named_buffers()))
    assert list(norm.state_dict()) == list(slow.state_dict())
    slow.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm.eval()(x), slow.eval()(x), rtol=0, atol=0)
