"""An all-reduce between processes that are placed and connected as the workers of a run are."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
import torch
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from distributed_autolora.config import ScalingConfig
from distributed_autolora.errors import first_line
from distributed_autolora.orchestration.cluster.ray_internals import setup_torch_process_group
from distributed_autolora.orchestration.cluster.rendezvous import join_at, open_here
from distributed_autolora.orchestration.cluster_check.findings import Place
from distributed_autolora.training.distributed.collectives import sum_over_workers

_CONNECT_S = 60
"""Seconds for the processes to find each other, and for a sum."""
_START_S = 180.0
"""Seconds for processes to be placed, and again to import torch, as a node that has just started needs them."""
_SUMS = 3


@dataclass(kw_only=True)
class AllReduce:
    """What was found."""

    backend: str
    places: tuple[Place, ...] = ()
    """By worker; empty: they could not be placed or started."""
    milliseconds: float = 0.0
    """Median of the slowest worker's sums."""
    problem: str = ""
    """What went wrong; empty: nothing."""


def all_reduce(scaling: ScalingConfig, size: int) -> AllReduce:
    """Starts one process for each worker, lets them sum `size` bytes of float32, and ends them."""
    found = AllReduce(backend="nccl" if scaling.use_gpu else "gloo")
    bundle = {"CPU": float(scaling.cpus_per_worker)} | ({"GPU": 1.0} if scaling.use_gpu else {})
    # As Ray Train places its workers.
    group = placement_group([bundle] * scaling.num_workers, strategy="PACK")
    actor = ray.remote(num_cpus=bundle["CPU"], num_gpus=bundle.get("GPU", 0))(_Worker)
    workers: list[Any] = []
    try:
        if not group.wait(_START_S):
            found.problem = f"no room for {scaling.num_workers} x {bundle} within {_START_S:g} s"
            return found
        for number in range(scaling.num_workers):
            where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number)
            workers.append(actor.options(scheduling_strategy=where).remote(number, scaling.num_workers))
        _connect_and_sum(workers, size, found)
    finally:
        for worker in workers:
            ray.kill(worker)
        remove_placement_group(group)
    return found


def _connect_and_sum(workers: list[Any], size: int, found: AllReduce) -> None:
    doing, within_s = "start", _START_S
    try:
        found.places = tuple(ray.get([worker.place.remote() for worker in workers], timeout=within_s))
        address, port = ray.get(workers[0].open_here.remote(), timeout=within_s)
        doing, within_s = "connect", 2.0 * _CONNECT_S
        ray.get([worker.connect.remote(address, port, found.backend) for worker in workers], timeout=within_s)
        doing = "sum"
        sums = ray.get([worker.sums.remote(size) for worker in workers], timeout=within_s)
        found.milliseconds = max(milliseconds for milliseconds, _ in sums)
        found.problem = "" if all(is_right for _, is_right in sums) else "the sums are wrong"
    except ray.exceptions.GetTimeoutError:
        found.problem = f"they did not {doing} within {within_s:g} s"
    except ray.exceptions.RayError as error:
        found.problem = f"they did not {doing}: {first_line(getattr(error, 'cause', None) or error)}"


class _Worker:
    def __init__(self, number: int, count: int) -> None:
        self._number, self._count = number, count

    def place(self) -> Place:
        gpu_free = int(torch.cuda.mem_get_info()[0]) if ray.get_gpu_ids() else None
        return Place(node_id=ray.get_runtime_context().get_node_id(), gpu_free=gpu_free)

    def open_here(self) -> tuple[str, int]:
        return open_here()

    def connect(self, address: str, port: int, backend: str) -> None:
        join_at(address, port)
        setup_torch_process_group(backend, self._number, self._count, "env://", timeout_s=_CONNECT_S)

    def sums(self, size: int) -> tuple[float, bool]:
        """Returns the median time of a sum in milliseconds, and whether every one was right."""
        device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        values = torch.full((max(1, size // 4),), float(self._number + 1), device=device)
        expected = float(self._count * (self._count + 1) // 2)
        times, is_right = [], True
        for _ in range(_SUMS + 1):  # the first opens the connections
            start = time.perf_counter()
            total = sum_over_workers(values)
            is_right &= bool((total == expected).all())  # on a GPU this waits for the sum
            times.append(1000 * (time.perf_counter() - start))
        return statistics.median(times[1:]), is_right
