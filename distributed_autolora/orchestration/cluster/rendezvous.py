"""The rendezvous of Ray Train's workers, on the first worker's node address only.

Ray has PyTorch listen on every address of the machine. Here the first worker listens on the address by which Ray knows
its node (loopback for a local Ray), and all workers join as they do under PyTorch's own launcher.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from ray.train.torch import TorchConfig

from distributed_autolora.orchestration.cluster.ray_internals import (
    TorchBackend,
    WorkerGroupStartupFailedError,
    set_torch_distributed_env_vars,
    setup_torch_process_group,
)
from distributed_autolora.training.distributed.collectives import open_rendezvous

_OPEN: list[Any] = []
"""The store of this process; the newest group's."""


@dataclass
class NodeTorchConfig(TorchConfig):  # type: ignore[misc]
    """PyTorch's process group for CPU workers (gloo) and GPU workers (NCCL), with the rendezvous on one address."""

    prepare: tuple[Callable[..., None], Any] | None = None
    """A function and its argument: runs on every worker before the group meets, as long as it takes."""

    @property
    def backend_cls(self) -> "type[_NodeBackend]":
        """What sets the group up."""
        return _NodeBackend


class _NodeBackend(TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: NodeTorchConfig) -> None:
        uses_gpu = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        if backend_config.prepare is not None:
            worker_group.execute(*backend_config.prepare)
        address, port = worker_group.execute_single(0, open_here)
        worker_group.execute(join_at, address, port)
        worker_group.execute(set_torch_distributed_env_vars)
        joining = [
            worker_group.execute_single_async(
                rank,
                setup_torch_process_group,
                backend="nccl" if uses_gpu else "gloo",
                world_rank=rank,
                world_size=len(worker_group),
                init_method="env://",
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(len(worker_group))
        ]
        try:
            ray.get(joining)
        except ray.exceptions.RayTaskError as error:
            # A worker was lost, and another one reported it first: Ray Train starts such a group again.
            raise WorkerGroupStartupFailedError(str(error)) from error


def open_here() -> tuple[str, int]:
    """Opens the rendezvous in this process, the first worker's; returns its address and port."""
    address = ray.util.get_node_ip_address()
    port, store = open_rendezvous(address)
    _OPEN[:] = [store]
    return address, port


def join_at(address: str, port: int) -> None:
    """Sets what PyTorch reads for "env://", so that this process joins the rendezvous there."""
    os.environ |= {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        # The store is there already: even the first worker only joins it.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
