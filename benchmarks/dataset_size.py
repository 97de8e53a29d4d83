"""Measures time and peak memory of what a run does with all images of a dataset before its first step.

    python benchmarks/dataset_size.py                                      # 20,000 images
    python benchmarks/dataset_size.py --images 1300000 --classes 1000      # as many as ImageNet has; hours on two cores

It writes small JPEG files (1.1 KB each: their number can be realistic, their size is not), prepares, checks and opens
them, and takes one step of a ResNet-18. Each part is a fresh process.
"""

import io
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout has no package "benchmarks"

from benchmarks.timing import BenchmarkFlags, run_benchmark, table
from benchmarks.worker_pool import in_fresh_process
from distributed_autolora.config import ExperimentConfig
from distributed_autolora.config.recipes import recipe
from distributed_autolora.data.preparation.flags import Folder
from distributed_autolora.data.preparation.prepare import prepare
from distributed_autolora.data.sampler import global_batches
from distributed_autolora.orchestration.runs.preflight import check_inputs, find_inputs
from distributed_autolora.training.task_data import TaskData
from distributed_autolora.training.trainer import Trainer

_SIDE, _BATCH = 32, 32


@dataclass(frozen=True, kw_only=True)
class Flags(BenchmarkFlags):
    """What to measure."""

    images: int = 20_000
    """Images in all, of which 3.85 % are test images."""
    classes: int = 100
    """Classes, with equally many images."""
    work: Path | None = None
    """Folder for files, task and cache, which keeps them; None: a temporary one that is removed."""


def measure(flags: Flags) -> dict[str, Any]:
    """Returns everything that is written."""
    parts = {
        "libraries": _nothing,
        "data prepare": _prepare,
        "check before a run": _check,
        "the same again": _check,
        "open and split, cache not there": _open,
        "open and split": _open,
        "open, split, first step": _step,
    }
    with tempfile.TemporaryDirectory() as temporary:
        work = flags.work or Path(temporary)
        _write_files(work / "files", flags)
        found = {name: in_fresh_process(_measured, part, str(work)) for name, part in parts.items()}
    return {"images": flags.images, "parts": found}


def show(result: dict[str, Any]) -> None:
    """Prints a line a part."""
    print(table(f"{result['images']:,} images", result["parts"]))


def _measured(part: Callable[[Path], None], work: str) -> dict[str, float]:
    torch.set_num_threads(1)
    start, cpu_start = time.perf_counter(), time.process_time()
    part(Path(work))
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": peak}


def _nothing(work: Path) -> None:
    pass


def _prepare(work: Path) -> None:
    prepare(Folder(source=work / "files", output=str(work / "task"), test_fraction=0.0385, overwrite=True))


def _check(work: Path) -> None:
    check_inputs(*find_inputs(_config(work)))


def _open(work: Path) -> None:
    config, inputs = find_inputs(_config(work))
    TaskData(config, inputs.data_folder, torch.device("cpu"))


def _step(work: Path) -> None:
    config, inputs = find_inputs(_config(work))
    data = TaskData(config, inputs.data_folder, torch.device("cpu"))
    trainer = Trainer(config, data, None, torch.device("cpu"))
    trainer.objective.train()
    batch = global_batches(data.split.train, _BATCH, config.seed, 1)[0]
    trainer.train_step(batch, *data.training_batch(trainer.share(batch), 1, "augmentation"))


def _config(work: Path) -> ExperimentConfig:
    config = recipe("custom")
    return replace(
        config,
        data=replace(config.data, path=str(work / "task"), image_size=None, augmentation="crop_flip"),
        model=replace(config.model, backbone="resnet18", weights=None),
        optimization=replace(config.optimization, global_batch_size=_BATCH),
        compute=replace(config.compute, attack_precision="float32", train_precision="float32"),
        scaling=replace(config.scaling, num_workers=1, cache=str(work / "cache")),
        run=replace(config.run, output=str(work / "output")),
    )


def _write_files(folder: Path, flags: Flags) -> None:
    """Writes a picture for each class, as often as it has images: a comment in the file makes each another."""
    drawn = np.random.default_rng(0)
    for label in range(flags.classes):
        content = io.BytesIO()
        pixels = drawn.integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(content, "JPEG", quality=60)
        start, rest = content.getvalue()[:2], content.getvalue()[2:]
        own = folder / f"class{label:04d}"
        own.mkdir(parents=True, exist_ok=True)
        for number in range(label, flags.images, flags.classes):
            (own / f"{number:07d}.jpg").write_bytes(start + b"\xff\xfe\x00\x06" + struct.pack(">I", number) + rest)


if __name__ == "__main__":
    run_benchmark(Flags, __doc__, measure, show)
