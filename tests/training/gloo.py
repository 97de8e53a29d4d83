"""Runs a function in several real gloo processes."""

import multiprocessing
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

# Each process of a group would import all of it for itself: seconds, many times.
multiprocessing.set_forkserver_preload(["torch", "torch.distributed", "distributed_autolora.training.loop"])


def run_workers(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """Returns what `function(*args)` returned in each of `world_size` processes of one group."""
    with tempfile.TemporaryDirectory() as folder:
        start_processes(_worker, (world_size, folder, function, args), nprocs=world_size, start_method="forkserver")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def _worker(rank: int, world_size: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=60), rank=rank, world_size=world_size)
    torch.save(function(*args), Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
