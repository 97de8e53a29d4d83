"""Everything about ranks. Every verb is a no-op on one process."""

import inspect
import socket
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def world_size() -> int:
    """Returns the number of training processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Returns this process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def sum_over_workers(values: Tensor) -> Tensor:
    """Returns the elementwise sum of every worker's `values`."""
    total = values.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


class StartedSum:
    """The elementwise sum of every worker's `values`, which the workers add up while the caller does something else."""

    def __init__(self, values: Tensor) -> None:
        self._total = values.detach().clone()
        self._work = dist.all_reduce(self._total, async_op=True) if world_size() > 1 else None

    def wait(self) -> Tensor:
        """Returns the sum, the same on every worker."""
        if self._work is not None:
            self._work.wait()
        return self._total


def gather_vectors(values: Tensor) -> Tensor:
    """Returns every worker's [n] `values` below each other, [W, n]. On gloo this takes half the time of a sum."""
    if world_size() == 1:
        return values.unsqueeze(0)
    gathered = values.new_empty(world_size() * len(values))
    # torch 2.11 knows it by its old name, which torch 2.14 warns of.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(gathered, values)
    return gathered.view(world_size(), -1)


def gather_rows(values: Tensor) -> Tensor:
    """Returns every worker's rows below each other, in the order of the workers; [n_w, ...] -> [sum of n_w, ...]."""
    if world_size() == 1:
        return values
    counts = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(values)], device=values.device))
    longest = int(torch.cat(counts).max())
    padded = values.new_zeros((longest, *values.shape[1:]))
    padded[: len(values)] = values
    shards = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(shards, padded)
    return torch.cat([shard[: int(count)] for shard, count in zip(shards, counts, strict=True)])


def copy_from_first(values: Tensor) -> None:
    """Overwrites `values` with the first worker's."""
    if world_size() > 1:
        dist.broadcast(values, src=0)


def assert_agreement(what: str, values: list[float], device: torch.device) -> None:
    """Checks that every worker holds the same `values` as the first.

    Raises:
        RuntimeError: on a worker that does not.
    """
    if world_size() == 1:
        return
    own = torch.tensor(values, dtype=torch.float64, device=device)
    first = own.clone()
    copy_from_first(first)
    if not torch.equal(own, first):
        raise RuntimeError(f"Workers disagree on {what}: {values} here, {first.tolist()} on the first worker.")


def wrapped_in_ddp(module: nn.Module, device: torch.device) -> nn.Module:
    """Wraps `module` in DistributedDataParallel, which then averages gradients and leaves buffers alone."""
    # torch 2.11 has no forward_sync_buffers.
    names = ("forward_sync_buffers", "broadcast_buffers")
    option = next(name for name in names if name in inspect.signature(DistributedDataParallel).parameters)
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices, **{option: False})  # type: ignore[arg-type]


def settle_reduction_layout(wrapped: nn.Module, *inputs: Tensor) -> None:
    """Runs one throw-away backward, so that every later step reduces gradients in the same order.

    DistributedDataParallel rebuilds its buckets after the first backward of a process. With three or
    more workers that changes the order of additions, and a resumed run would differ from an
    uninterrupted one by rounding.

    Parameters and buffers are left as they were.
    """
    if world_size() == 1:
        return
    kept = {name: buffer.clone() for name, buffer in wrapped.named_buffers()}
    wrapped(*inputs).total.backward()
    wrapped.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in wrapped.named_buffers():
            buffer.copy_(kept[name])


def open_rendezvous(address: str) -> tuple[int, Any]:
    """Opens the rendezvous store of a group of workers, on one address of this machine and a free port.

    PyTorch's own would listen on every address of the machine.

    Returns the port, and the store, which is open as long as it is referenced.
    """
    listener = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    port = int(listener.getsockname()[1])
    store = dist.TCPStore(address, port, is_master=True, master_listen_fd=listener.detach())  # type: ignore[attr-defined]
    return port, store
