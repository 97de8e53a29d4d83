"""Measures how fast the images of a 224-pixel task are read and decoded, and that a worker's memory stays flat.

    python benchmarks/reading.py                      # 4,000 images
    python benchmarks/reading.py --images 40000       # an epoch as large as Caltech-256

It draws JPEG files, writes them as a task, and then reads a training epoch of it, as one worker does, in a fresh
process. Prints a table and writes the same as JSON.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from distributed_autolora.hardware import available_cpus

_DRAWN = 500
"""Different pictures; drawing takes longer than reading."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What to measure."""

    images: int = 4000
    """Images of the epoch."""
    side: tuple[int, int] = (400, 300)
    """Width and height of the JPEG files in pixels; Stanford Dogs' are 443 x 386 on average."""
    batch: int = 128
    """Images of a batch."""
    threads: int = 1
    """Threads that decode."""
    gpu_images_per_second: tuple[float, ...] = (200.0, 1000.0, 4000.0)
    """Rates of training to find the number of cores for; measure yours with jobs/finetune.py."""
    work: Path | None = None
    """Folder for the task and its cache; None: a temporary one that is removed."""
    output: Path = Path("reading.json")
    """File to write the numbers to."""


@dataclass(frozen=True)
class Sample:
    """Memory of the worker after some images, in MiB."""

    images: int
    private: float
    """Its own memory: what must stay flat."""
    mapped: float
    """Pages of files that it maps, shared by all workers of a node; the system takes them back when it needs room."""


def main() -> None:
    """Measures, prints and writes."""
    flags = tyro.cli(Flags, description=__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        work = flags.work or Path(temporary)
        size = _write_task(flags, work / "task")
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            measured = pool.apply(_read_epoch, (flags, str(work)))
    # Processor time, not elapsed time: what other programs take of a shared machine does not count.
    rate = measured["images_per_cpu_second"]
    result = {
        "images": flags.images,
        "image_pixels": list(flags.side),
        "image_bytes_mean": size / flags.images,
        "threads": flags.threads,
        "machine": f"{platform.machine()}, {available_cpus()} CPUs",
        **measured,
        "cores_for_gpu_rate": {str(gpu): gpu / rate for gpu in flags.gpu_images_per_second},
    }
    flags.output.write_text(json.dumps(result, indent=2))
    _print(result, flags.output)


def _write_task(flags: Flags, folder: Path) -> int:
    """Writes the task; returns the bytes of its training images."""
    from distributed_autolora.data.parquet.writer import ROW_GROUP, ImageRow, SplitWriter, groups_of

    sizes = 0
    drawn = [_jpeg(number, flags.side) for number in range(min(_DRAWN, flags.images))]

    def rows(count: int, first: int) -> Iterator[ImageRow]:
        nonlocal sizes
        for number in range(first, first + count):
            # Bytes behind the end of a JPEG file change its hash and not its picture.
            image = drawn[number % len(drawn)] + number.to_bytes(4, "little")
            sizes += len(image) if first == 0 else 0
            yield ImageRow(image, number % 10, str(number))

    texts = {"class_names": [f"class {n}" for n in range(10)], "task": "drawn", "licence": "none"}
    for split, count, first in (("train", flags.images, 0), ("test", 10, flags.images)):
        with SplitWriter(str(folder), split, 10) as writer:
            for group in groups_of(rows(count, first), ROW_GROUP):
                writer.write(group)
            writer.finish({**texts, "split": split})
    return sizes


def _jpeg(number: int, side: tuple[int, int]) -> bytes:
    """Draws smooth shapes with some noise: about as many bytes a pixel as a photograph."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(number)
    coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
        side, Image.Resampling.BICUBIC
    )
    noise = generator.integers(-12, 13, (side[1], side[0], 1), dtype=np.int16)
    pixels = (np.asarray(coarse).astype(np.int16) + noise).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _read_epoch(flags: Flags, work: str) -> dict[str, Any]:
    """Reads an epoch as a worker does, and returns what it took."""
    import torch

    from distributed_autolora.config import DataConfig, ExperimentConfig, ScalingConfig
    from distributed_autolora.data.sampler import global_batches
    from distributed_autolora.training.task_data import TaskData

    torch.set_num_threads(flags.threads)
    config = ExperimentConfig(
        data=DataConfig(path=f"{work}/task", image_size=224, augmentation="resized_crop_flip", val_images_min=0),
        scaling=ScalingConfig(cache=f"{work}/cache"),
    )
    start = time.perf_counter()
    data = TaskData(config, f"{work}/task", torch.device("cpu"))
    opened = time.perf_counter()
    batches = global_batches(torch.arange(len(data.table)), flags.batch, seed=0, epoch=1)
    samples: list[Sample] = []
    seen, cpu_start = 0, time.process_time()
    for x, _ in data.prefetch(batches, 1, "augmentation"):
        seen += len(x)
        if not samples or seen - samples[-1].images >= 1000 or seen == flags.images:
            samples.append(_memory(seen))
    seconds, cpu_seconds = time.perf_counter() - opened, time.process_time() - cpu_start
    settled = [sample.private for sample in samples[1:]] or [samples[0].private]
    return {
        "seconds_to_write_and_open_the_cache": opened - start,
        "images_per_second": flags.images / seconds,
        "images_per_cpu_second": flags.images / cpu_seconds,
        "private_memory_growth_mib": max(settled) - settled[0],
        "memory": [asdict(sample) for sample in samples],
    }


def _memory(images: int) -> Sample:
    lines = Path("/proc/self/status").read_text().splitlines()
    kibibytes = {line.partition(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}
    return Sample(images, kibibytes["RssAnon"] / 1024, kibibytes["RssFile"] / 1024)


def _print(result: dict[str, Any], output: Path) -> None:
    width, height = result["image_pixels"]
    print(f"{result['images']:,} JPEG files of {width} x {height} pixels, {result['image_bytes_mean']:,.0f} bytes each")
    print(f"{result['machine']}, {result['threads']} threads decode\n")
    print(f"{'images read':>12} {'own memory, MiB':>16} {'mapped, MiB':>12}")
    for sample in result["memory"]:
        print(f"{sample['images']:>12,} {sample['private']:>16,.0f} {sample['mapped']:>12,.0f}")
    print(f"\nwriting and opening the cache: {result['seconds_to_write_and_open_the_cache']:.1f} s")
    print(f"decoded, cropped and scaled: {result['images_per_cpu_second']:.0f} images/s a core")
    print(f"in this run, with whatever else the machine did: {result['images_per_second']:.0f} images/s")
    for rate, cores in result["cores_for_gpu_rate"].items():
        print(f"cores for a GPU that trains on {float(rate):,.0f} images/s: {cores:.1f}")
    print(f"\nWritten to {output}")


if __name__ == "__main__":
    main()
