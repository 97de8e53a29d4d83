"""Training steps of one worker, and their collectives as a profile shows them."""

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from math import prod

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.trained import TrainingSteps
from distributed_autolora.config import ExperimentConfig
from distributed_autolora.data.catalog import data_folder, embedded_backbone
from distributed_autolora.data.sampler import global_batches, worker_share
from distributed_autolora.training.distributed import collectives
from distributed_autolora.training.epoch import PhaseSeconds
from distributed_autolora.training.task_data import TaskData

PHASES = ("data", "attack", "step")
_TIMEOUT = timedelta(seconds=120)


@dataclass(frozen=True)
class Turn:
    """Seconds of some steps in one process, in all and by phase."""

    seconds: float
    phases: dict[str, float]


@dataclass(frozen=True)
class Collective:
    """One collective of a step: its phase, its name in torch.distributed, and how many numbers this worker sent.

    `seconds` last from the call until the caller does something else.
    """

    phase: str
    verb: str
    numbers: int
    seconds: float


def start_worker(config: ExperimentConfig, rank: int | None, num_workers: int, store: str) -> TrainingSteps:
    """Joins the gloo group, unless `rank` is None, and makes a trainer on the shipped task."""
    if rank is not None:
        dist.init_process_group("gloo", f"file://{store}", _TIMEOUT, rank=rank, world_size=num_workers)
    device = torch.device("cpu")
    data = TaskData(config, data_folder(config.data), device)
    return TrainingSteps(config, data, str(embedded_backbone()), device)


def take_steps(worker: TrainingSteps, steps: int, halved: bool = False, timer: PhaseSeconds | None = None) -> Turn:
    """Takes steps on the full batches of epoch 1, as `Trainer.train_epoch` does; `halved`: on half of each."""
    trainer, worker.timer = worker.trainer, timer or PhaseSeconds()
    size, seed = trainer.config.optimization.global_batch_size, trainer.config.seed
    full = [batch for batch in global_batches(trainer.data.split.train, size, seed, 1) if len(batch) == size]
    batches = [full[step % len(full)] for step in range(steps)]
    if halved:
        batches = [worker_share(batch, 0, 2) for batch in batches]
    shares = [trainer.share(batch) for batch in batches]
    images = trainer.data.prefetch(shares, 1, "augmentation")
    start = time.perf_counter()
    for batch in batches:
        with worker.timer.phase("data"):
            x, y = next(images)
        worker.take(batch, x, y)
    return Turn(time.perf_counter() - start, worker.timer.seconds)


class _MarkedPhases(PhaseSeconds):
    """Seconds by phase that are also ranges in a profile."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        with super().phase(name), record_function(name):
            yield


def profiled_steps(worker: TrainingSteps, steps: int) -> tuple[float, list[Collective]]:
    """Takes steps under the profiler and returns their seconds and their collectives."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        turn = take_steps(worker, steps, timer=_MarkedPhases())
    events = profiled.events() or []
    ranges = [(event.time_range, event.name) for event in events if event.name in PHASES]
    callers = {event.thread for event in events if event.name in PHASES}
    begun = sorted(event.time_range.start for event in events if event.thread in callers)
    found = []
    for event in events:
        if event.name.startswith("gloo:"):
            span = event.time_range
            phase = next((name for own, name in ranges if own.start <= span.start <= own.end), "none")
            numbers = sum(prod(shape) for shape in event.input_shapes if shape)
            # The calling thread wakes up some time after gloo has finished.
            resumed = begun[min(bisect_left(begun, span.end), len(begun) - 1)]
            found.append(Collective(phase, event.name.removeprefix("gloo:"), numbers, (resumed - span.start) / 1e6))
    return turn.seconds, found


def seconds_alone(_worker: TrainingSteps, sent: Sequence[Collective], rounds: int) -> float:
    """Returns the seconds that these collectives take back to back, with no computation in between."""
    tensors = [(collective.verb, torch.zeros(collective.numbers)) for collective in sent]
    start = time.perf_counter()
    for _ in range(rounds):
        for verb, own in tensors:
            if verb == "all_gather":
                collectives.gather_vectors(own)
            else:
                dist.all_reduce(own)
    return (time.perf_counter() - start) / rounds
