"""Which rows a step sees: global batches that do not depend on the number of workers."""

import torch
from torch import Tensor

from distributed_autolora.core.keyed_random import keyed_permutation


def global_batches(rows: Tensor, global_batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    """Shuffles the rows of an epoch and cuts them into global batches; no row is dropped or repeated.

    The last batch may have fewer rows. Each epoch, from 1, has an order of its own.

    Raises:
        ValueError: if `global_batch_size` is below 1.
    """
    if global_batch_size < 1:
        raise ValueError(f"global_batch_size must be at least 1, not {global_batch_size}")
    shuffled = rows[keyed_permutation(seed, "order", epoch, len(rows)).to(rows.device)]
    return [shuffled[start : start + global_batch_size] for start in range(0, len(rows), global_batch_size)]


def worker_share(batch: Tensor, worker: int, num_workers: int, shards: int | None = None) -> Tensor:
    """Returns the rows worker, worker + num_workers, ... of a global batch; possibly none.

    With `shards`, row i is in shard i mod `shards`, and the worker has all rows of the shards worker, worker +
    num_workers, .... Where num_workers divides `shards`, these are the same rows.

    Raises:
        ValueError: unless 0 <= worker < num_workers.
    """
    if not 0 <= worker < num_workers:
        raise ValueError(f"worker must be in 0 .. {num_workers - 1}, not {worker}")
    if shards is None or shards % num_workers == 0:
        return batch[worker::num_workers]
    return batch[torch.arange(len(batch), device=batch.device) % shards % num_workers == worker]
