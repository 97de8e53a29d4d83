"""Measures how fast the images of a 224-pixel task are read and decoded, and that a worker's memory stays flat.

    python benchmarks/reading.py                      # 4,000 images
    python benchmarks/reading.py --images 40000       # an epoch as large as Caltech-256

It draws JPEG files, writes them as a task, and reads a training epoch of it as one worker does, in a fresh process.
"""

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout has no package "benchmarks"

from benchmarks.drawn_task import smooth_jpeg, write_drawn_task
from benchmarks.timing import BenchmarkFlags, run_benchmark, table
from benchmarks.worker_pool import in_fresh_process
from distributed_autolora.config import DataConfig, ExperimentConfig, ScalingConfig
from distributed_autolora.data.sampler import global_batches
from distributed_autolora.training.task_data import TaskData

_DRAWN = 500
"""Different pictures; drawing takes longer than reading."""


@dataclass(frozen=True, kw_only=True)
class Flags(BenchmarkFlags):
    """What to measure."""

    images: int = 4000
    """Images of the epoch."""
    side: tuple[int, int] = (400, 300)
    """Width and height of the JPEG files in pixels; Stanford Dogs' are 443 x 386 on average."""
    batch: int = 128
    """Images of a batch."""
    threads: int = 1
    """Threads that decode."""
    work: Path | None = None
    """Folder for the task and its cache; None: a temporary one that is removed."""


def measure(flags: Flags) -> dict[str, Any]:
    """Returns everything that is written."""
    with tempfile.TemporaryDirectory() as temporary:
        work = flags.work or Path(temporary)
        drawn = [smooth_jpeg(number, flags.side) for number in range(min(_DRAWN, flags.images))]
        # Bytes behind the end of a JPEG file change its hash and not its picture.

        def draw(number: int) -> bytes:
            return drawn[number % len(drawn)] + number.to_bytes(4, "little")

        write_drawn_task(str(work / "task"), flags.images, draw)
        measured = in_fresh_process(_read_epoch, flags, str(work))
    return {
        "images": flags.images,
        "image_pixels": list(flags.side),
        "image_bytes_mean": sum(len(draw(number)) for number in range(flags.images)) / flags.images,
        "threads": flags.threads,
        **measured,
    }


def _read_epoch(flags: Flags, work: str) -> dict[str, Any]:
    """Reads an epoch as a worker does, and returns its speed and memory."""
    torch.set_num_threads(flags.threads)
    config = ExperimentConfig(
        data=DataConfig(path=f"{work}/task", image_size=224, augmentation="resized_crop_flip", val_images_min=0),
        scaling=ScalingConfig(cache=f"{work}/cache"),
    )
    start = time.perf_counter()
    data = TaskData(config, f"{work}/task", torch.device("cpu"))
    opened = time.perf_counter()
    batches = global_batches(torch.arange(len(data.table)), flags.batch, seed=0, epoch=1)
    samples: list[dict[str, float]] = []
    seen, cpu_start = 0, time.process_time()
    for x, _ in data.prefetch(batches, 1, "augmentation"):
        seen += len(x)
        if not samples or seen - samples[-1]["images"] >= 1000 or seen == flags.images:
            samples.append(_memory(seen))
    seconds, cpu_seconds = time.perf_counter() - opened, time.process_time() - cpu_start
    settled = [sample["own_memory"] for sample in samples[1:] or samples]
    return {
        "seconds_to_write_and_open_the_cache": opened - start,
        "images_per_second": flags.images / seconds,
        "images_per_cpu_second": flags.images / cpu_seconds,
        "private_memory_growth_mib": max(settled) - settled[0],
        "memory": samples,
    }


def _memory(images: int) -> dict[str, float]:
    """Returns the memory in MiB; mapped pages of files are shared, and the system can reclaim them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kibibytes = {line.partition(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}
    return {"images": images, "own_memory": kibibytes["RssAnon"] / 1024, "mapped": kibibytes["RssFile"] / 1024}


def show(result: dict[str, Any]) -> None:
    """Prints the table, and the rates."""
    width, height = result["image_pixels"]
    print(
        f"{result['images']:,} JPEG files of {width} x {height} pixels, {result['image_bytes_mean']:,.0f} bytes each,"
    )
    print(f"decoded by {result['threads']} threads\n")
    print(table("MiB", {f"{number}": one for number, one in enumerate(result["memory"], 1)}))
    print(f"\nwriting and opening the cache: {result['seconds_to_write_and_open_the_cache']:.1f} s")
    print(f"decoded, cropped and scaled: {result['images_per_cpu_second']:.0f} images per second and core")
    print(f"wall clock of this run: {result['images_per_second']:.0f} images per second")


if __name__ == "__main__":
    run_benchmark(Flags, __doc__, measure, show)
