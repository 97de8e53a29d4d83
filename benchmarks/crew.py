"""Training processes of one thread each that stay alive and take their turns, some in a gloo group of their own."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.data.catalog import data_folder, embedded_backbone
from distributed_autolora.data.sampler import global_batches, worker_share
from distributed_autolora.training.distributed import collectives
from distributed_autolora.training.epoch import LossSums, PhaseSeconds
from distributed_autolora.training.task_data import TaskData
from distributed_autolora.training.trainer import Trainer

_LEAVE_S = 10.0
_TIMEOUT = timedelta(seconds=120)


@dataclass(frozen=True)
class Turn:
    """What some steps in one process took, in seconds, in all and by phase."""

    seconds: float
    phases: dict[str, float]


class Crew:
    """Processes of one thread that each hold a trainer on the shipped task, by name.

    Args:
        config: the experiment; its attack precision is chosen.
        alone: names of processes that train without a group.
        group: names of the workers of one gloo group, by rank.
    """

    def __init__(self, config: ExperimentConfig, alone: Sequence[str], group: Sequence[str]) -> None:
        self._config, self._group_size = config, len(group)
        self._ranks: dict[str, int | None] = {**dict.fromkeys(alone), **{name: i for i, name in enumerate(group)}}
        self._pipes: dict[str, Connection[Any, Any]] = {}
        self._processes: list[BaseProcess] = []

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        # Before the new processes import torch; its profiler would say on stderr that it begins and ends.
        os.environ.update(OMP_NUM_THREADS="1", KINETO_LOG_LEVEL="99")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["distributed_autolora.training.trainer"])
        for name, rank in self._ranks.items():
            self._pipes[name], theirs = context.Pipe()
            place = (theirs, self._config, rank, self._group_size, f"{self._folder.name}/store")
            process = context.Process(target=_serve, args=place, daemon=True)
            process.start()
            theirs.close()  # or the end of that process would not be seen here
            self._processes.append(process)
        return self

    def ask(self, names: Sequence[str], function: Callable[..., Any], *args: Any) -> list[Any]:
        """Returns what `function(trainer, *args)` returns in these processes, which run it at the same time.

        Raises:
            EOFError: when one of them ended; it has said why on stderr.
        """
        for name in names:
            self._pipes[name].send((function, args))
        return [self._pipes[name].recv() for name in names]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes.values():
            with suppress(OSError):
                pipe.send(None)
        for process in self._processes:
            process.join(_LEAVE_S if error is None else 0)
            if process.is_alive():
                process.kill()
                process.join()
        self._folder.cleanup()


def take_steps(trainer: Trainer, steps: int, halved: bool = False, timer: PhaseSeconds | None = None) -> Turn:
    """Takes steps as `Trainer.train_epoch` does, on the whole batches of epoch 1.

    Args:
        trainer: this process's.
        steps: number of global batches.
        halved: half of every global batch is all there is, as if global batches had half as many images.
        timer: takes the seconds.
    """
    timer = timer or PhaseSeconds()
    # The loss is never looked at: that costs a reduction, once in many steps and at the end of an epoch.
    sums = LossSums(steps + 1, "the benchmark")
    size, seed = trainer.config.optimization.global_batch_size, trainer.config.seed
    whole = [batch for batch in global_batches(trainer.data.split.train, size, seed, 1) if len(batch) == size]
    batches = [whole[step % len(whole)] for step in range(steps)]
    if halved:
        batches = [worker_share(batch, 0, 2) for batch in batches]
    shares = [worker_share(batch, collectives.rank(), collectives.world_size()) for batch in batches]
    images = trainer.data.prefetch(shares, 1, "augmentation")
    start = time.perf_counter()
    for batch in batches:
        with timer.phase("data"):
            x, y = next(images)
        trainer.train_step(batch, x, y, 1, sums, timer)
    return Turn(time.perf_counter() - start, timer.seconds)


def _serve(pipe: Connection[Any, Any], config: ExperimentConfig, rank: int | None, group_size: int, store: str) -> None:
    """Makes a trainer and does what it is asked for until it is told to leave."""
    torch.set_num_threads(1)
    if rank is not None:
        dist.init_process_group("gloo", f"file://{store}", _TIMEOUT, rank=rank, world_size=group_size)
    device = torch.device("cpu")
    trainer = Trainer(config, TaskData(config, data_folder(config.data), device), str(embedded_backbone()), device)
    trainer.set_loss_weights(0.5)
    trainer.objective.train()
    while (order := pipe.recv()) is not None:
        function, args = order
        pipe.send(function(trainer, *args))
    if rank is not None:
        dist.destroy_process_group()
