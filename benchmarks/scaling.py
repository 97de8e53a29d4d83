"""Measures how an epoch grows with images and workers, and models a step on many GPUs from the measured pieces.

    python benchmarks/scaling.py                      # five minutes on two idle cores
    python benchmarks/scaling.py --workers 1 2 --images 160 320

Processes of one thread train the demo's network on the shipped images, with batch norm over shards. Where they are more
than the cores, the wall clock says nothing about more machines: a worker's CPU seconds do.

The step on N GPUs is a model, not a measurement: seconds = compute + waiting + collectives, where compute is
floating-point operations / `gpu_flops`; waiting is what the slowest of N adds to normal variations of `spread`, which
every synchronisation inside the step makes worse; an all-reduce takes 2 log2 N latencies and sends its bytes twice.
"""

import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout has no package "benchmarks"

from benchmarks.collectives import Collective, seconds_alone, start_worker, take_steps
from benchmarks.timing import BenchmarkFlags, run_benchmark, table
from benchmarks.trained import TrainingSteps
from benchmarks.worker_pool import WorkerPool
from distributed_autolora.config import ExperimentConfig
from distributed_autolora.config.recipes import demo
from distributed_autolora.hardware import available_cpus, cpu_precision
from distributed_autolora.orchestration.runs.names import with_precision
from distributed_autolora.training.epoch import PhaseSeconds
from distributed_autolora.training.loop import run_epoch

# A ResNet-50 at 224 pixels: multiplications and additions of a forward, bytes of float32 gradients, batch norms.
FLOPS, BYTES, NORMS = 8.2e9, 102e6, 53
LINKS = {"NVLink": (450e9, 10e-6), "25 Gbit/s Ethernet": (25e9 / 8, 40e-6)}
"""Bytes a second and seconds of latency of a GPU's link."""


@dataclass(frozen=True, kw_only=True)
class Flags(BenchmarkFlags):
    """What to measure, and what to assume of a GPU."""

    workers: tuple[int, ...] = (1, 2, 4, 8)
    """Processes of a group; each number divides the largest."""
    images: tuple[int, ...] = (160, 320, 640, 1280)
    """Training and validation images of an epoch."""
    batch: int = 64
    """Images of a global batch (strong scaling); with weak scaling an eighth of it for each worker."""
    steps: int = 6
    """Steps that are timed."""
    gpu_flops: float = 200e12
    """Operations a second that one GPU is assumed to reach in bfloat16."""
    spread: float = 0.05
    """Standard deviation of a worker's step, relative to it."""


class CpuSeconds(PhaseSeconds):
    """CPU seconds of this process by phase."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start


@dataclass(frozen=True)
class Step:
    """A training step of one of W workers: seconds of its two phases, synchronisations, bytes of the gradients."""

    attack: float
    step: float
    syncs: int
    size: float

    def seconds(self, workers: int, link: tuple[float, float], spread: float) -> float:
        """Returns the seconds of the step; a link has bytes a second and seconds of latency."""
        (speed, latency), hops = link, math.log2(workers)
        slowest = float(norm.ppf((workers - 0.375) / (workers + 0.25)))  # of W normal variables (Blom, 1958)
        waiting = spread * slowest * (self.attack + self.step * math.sqrt(self.syncs))
        sent = 2 * self.syncs * hops * latency + 2 * (1 - 1 / workers) * self.size / speed
        return self.attack + self.step + waiting + sent


def measure(flags: Flags) -> dict[str, Any]:
    """Returns everything that is written."""
    config = with_precision(demo(), cpu_precision())
    most, share = max(flags.workers), flags.batch // 8
    sizes = [(n, size) for n in flags.workers for size in sorted({flags.batch, n * share})]
    groups = {(n, size): of_group(config, n, size, most, flags.steps) for n, size in sizes}
    for (n, size), found in groups.items():
        # One worker's seconds grow linearly with its images.
        small, large = (groups[1, images]["cpu"] for images in (share, flags.batch))
        part = (size / n - share) / (flags.batch - share)
        attack, step = (small[phase] + part * (large[phase] - small[phase]) for phase in ("attack", "step"))
        alone, link = Step(attack, step, 2, found["bytes"]), (found["bytes_a_second"], found["latency"])
        lent = max(1.0, n / available_cpus())  # how many workers share a core
        found["modelled_seconds"] = alone.seconds(n, link, flags.spread) + (lent - 1) * (attack + step)
        found["modelled_cpu_seconds"] = attack + step
    return {
        "epochs": {str(images): epoch_seconds(config, images) for images in flags.images},
        "groups": {f"{n} workers, {size} images": found for (n, size), found in groups.items()},
        "gpus": gpus(flags),
    }


def of_group(config: ExperimentConfig, workers: int, size: int, shards: int, steps: int) -> dict[str, Any]:
    """Returns seconds of a step in a gloo group by the wall clock and by the CPU time of its busiest worker."""
    optimization = replace(config.optimization, global_batch_size=size, batch_norm="shards", batch_norm_shards=shards)
    config = replace(config, optimization=optimization)
    with tempfile.TemporaryDirectory() as folder:
        ranks = {f"{n}": partial(start_worker, config, n, workers, f"{folder}/store") for n in range(workers)}
        with WorkerPool(ranks) as pool:
            pool.call(list(ranks), cpu_steps, 1)
            found = pool.call(list(ranks), cpu_steps, steps)
            sums = [Collective("", "all_reduce", numbers, 0) for numbers in (1, 250_000)]
            small, large = (max(pool.call(list(ranks), seconds_alone, [one], 20)) for one in sums)
    busiest = max(found, key=lambda one: sum(one[1].values()))
    return {
        "seconds": max(seconds for seconds, _, _ in found) / steps,
        "cpu_seconds": sum(busiest[1].values()) / steps,
        "cpu": {phase: seconds / steps for phase, seconds in busiest[1].items()},
        "bytes": found[0][2],
        "latency": small / (2 * max(1.0, math.log2(workers))),
        "bytes_a_second": max(1.0, 2 * (1 - 1 / workers) * 1e6) / max(1e-9, large - small),
    }


def cpu_steps(worker: TrainingSteps, steps: int) -> tuple[float, dict[str, float], float]:
    """Returns the seconds of some steps, their CPU seconds by phase, and the bytes of gradients."""
    turn = take_steps(worker, steps, timer=CpuSeconds())
    trained = [parameter for parameter in worker.trainer.objective.parameters() if parameter.requires_grad]
    return turn.seconds, turn.phases, sum(parameter.nbytes for parameter in trained)


def epoch_seconds(config: ExperimentConfig, images: int) -> dict[str, float]:
    """Returns the CPU seconds of a whole epoch of one worker: its steps, validation and decisions."""
    config = replace(config, data=replace(config.data, train_images=images))
    config = replace(config, evaluation=replace(config.evaluation, masking_every=0))
    trainer = start_worker(config, None, 1, "").trainer
    start = time.process_time()
    run_epoch(trainer)
    seconds = time.process_time() - start
    return {"cpu_seconds": seconds, "milliseconds_an_image": 1000 * seconds / images}


def gpus(flags: Flags) -> dict[str, dict[str, float]]:
    """Returns the modelled images a second of 8, 64 and 256 GPUs."""
    forward = FLOPS / flags.gpu_flops
    attack, step = 10 * 2 * forward, 2 * 3 * forward  # ten input gradients; forward and backward of two branches
    batches: dict[str, Callable[[int], int]] = {"1,024 images": lambda n: 1024, "16 images a GPU": lambda n: 16 * n}
    return {
        f"{batch}, {name}, {norms}": {
            f"{n} GPUs": of(n) / Step(of(n) / n * attack, of(n) / n * step, syncs, BYTES).seconds(n, link, flags.spread)
            for n in (8, 64, 256)
        }
        for batch, of in batches.items()
        for name, link in LINKS.items()
        for norms, syncs in (("global", 4 * NORMS + 1), ("shards", 2))
    } | {"without any loss": {f"{n} GPUs": n / (attack + step) for n in (8, 64, 256)}}


def show(result: dict[str, Any]) -> None:
    """Prints the tables."""
    print(table("an epoch of one worker", result["epochs"]))
    columns = ("seconds", "modelled_seconds", "cpu_seconds", "modelled_cpu_seconds")
    steps = {name: {column: found[column] for column in columns} for name, found in result["groups"].items()}
    print(f"\n{table('a step', steps)}")
    print("\nA model, not a measurement: ResNet-50, 224 pixels, images a second")
    print(table("global batch, link, batch norm", result["gpus"]))


if __name__ == "__main__":
    run_benchmark(Flags, __doc__, measure, show)
