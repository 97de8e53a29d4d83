"""Checks on a GPU what no CPU can tell, in about eight minutes; on a CPU the same at small sizes. No Ray, no MLflow.

    python benchmarks/gpu_check.py                 # torch.compile comes last; --no-compile leaves it out
    python benchmarks/gpu_check.py --device cpu    # two minutes

Each check prints PASS or FAIL with its figure; one that breaks costs its own line. The JSON file is written after each.
It needs torch 2.9 or newer, torchvision, numpy, Pillow, pyarrow, safetensors and PyYAML.
"""

import argparse
import sys
import tempfile
import traceback
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout has no package "benchmarks"

from benchmarks import gpu_speed, reading
from benchmarks.gpu_correctness import Check, captured_attack, gradients, identity, process_group, processes
from benchmarks.timing import table
from distributed_autolora.config.recipes import PAPER_METHODS, paper
from distributed_autolora.core.fast_attack.tf32 import tf32_off
from distributed_autolora.hardware import available_cpus
from distributed_autolora.training.methods.cost import run_passes
from distributed_autolora.training.methods.registry import METHODS

PEAK_FLOPS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "A10": 125e12}
"""Dense bfloat16 operations a second by data sheet; the first name that is part of the device's counts."""
TRAIN_IMAGES = {"cifar10": 50000, "cifar100": 50000, "dtd": 3760, "dogs": 12000, "cub": 5994, "caltech256": 27058}
"""Images of the paper's six tasks, 5 % of which validate."""
SEEDS = 3
SIZES = {
    "full": Namespace(images=1250, pictures=8000, side=224, batch=128, steps=10, rounds=10),
    "small": Namespace(images=500, pictures=500, side=32, batch=4, steps=2, rounds=1),
    "tiny": Namespace(images=100, pictures=20, side=16, batch=4, steps=1, rounds=1),
}
"""Training images of the checks, JPEG files that are read, and side, batch, attack steps and rounds that are timed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs every part; returns 1 if a check failed, else 0."""
    flags = _parse(arguments)
    device = torch.device(flags.device)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    tf32_off()
    size = SIZES[flags.size or ("full" if device.type == "cuda" else "small")]
    check = Check(device, size, flags.output)
    parts = [environment, captured_attack, gradients, identity, processes, process_group]
    parts += [partial(speed, network=network) for network in flags.networks]
    parts += [images, hours]
    if device.type == "cuda" and not flags.no_compile:
        parts += [partial(speed, network=network, names=gpu_speed.COMPILED) for network in flags.networks]
    for part in parts:
        try:
            part(check)
        except Exception as error:  # whatever breaks costs one line
            traceback.print_exc()
            check.row(_name(part), False, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    failed = [row["check"] for row in check.rows if row["status"] == "FAIL"]
    print(f"\nWritten to {flags.output}. {'FAILED: ' + ', '.join(failed) if failed else 'No check failed.'}")
    return 1 if failed else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda, cuda:1 or cpu")
    parser.add_argument(
        "--networks", nargs="+", default=["resnet18", "resnet50"], help="backbones whose steps are timed"
    )
    parser.add_argument("--size", choices=SIZES, help="full: the paper's; None: full on a GPU, small on a CPU")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it takes minutes")
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"), help="file to write the figures to")
    return parser.parse_args(arguments)


def _name(part: Any) -> str:
    return f"{part.func.__name__} ({part.keywords['network']})" if isinstance(part, partial) else part.__name__


def environment(check: Check) -> None:
    """Device and versions."""
    on_gpu = check.device.type == "cuda"
    name = torch.cuda.get_device_name(check.device) if on_gpu else "no GPU: the checks run on the CPU"
    cuda = f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}" if on_gpu else ""
    check.row("device", None, f"{name}; torch {torch.__version__}{cuda}")


def speed(check: Check, network: str, names: dict[str, gpu_speed.Formats] = gpu_speed.VARIANTS) -> None:
    """Attack and step by variant, share of the device's peak, and memory against its estimate."""
    size, on_gpu = check.size, check.device.type == "cuda"
    device = torch.cuda.get_device_name(check.device) if on_gpu else ""
    peak = next((flops for part, flops in PEAK_FLOPS.items() if part in device), None)
    with tempfile.TemporaryDirectory() as folder:
        work = gpu_speed.Work(network, check.device, size.side, size.batch, size.steps, folder)
        if on_gpu and names is gpu_speed.VARIANTS:
            reserved, estimated = (number / 2**30 for number in gpu_speed.memory(work))
            figure = f"{reserved:.1f} GiB reserved, {estimated:.1f} GiB estimated"
            check.row(f"memory of {network}", 0.8 * reserved <= estimated, figure)
        found = gpu_speed.measured(names, work, size.rounds, peak)
    what = f"{network}, {size.side} pixels, batch {size.batch}, PGD-{size.steps}"
    print(f"{what}; speeds over {found['speeds_over']}\n{table('variant', found['variants'])}", flush=True)
    figure = "; ".join(f"{name}: {why}" for name, why in found["failed"].items())
    check.speed.setdefault(network, {}).update(found["variants"])
    check.row(f"variants of {network}", not found["failed"], figure or f"all {len(found['variants'])} ran")


def images(check: Check) -> None:
    """What the CPUs can feed: decoded images a second."""
    cpus = available_cpus()
    found = reading.measure(reading.Flags(images=check.size.pictures, threads=cpus))
    eaten = [one["images_per_second"] for network in check.speed.values() for one in network.values()]
    rate = found["images_per_second"]
    figure = f"{rate:.0f} images a second on {cpus} CPUs; the fastest step takes {max(eaten, default=0):.0f}"
    check.row("reading", None, figure, images_per_second=rate)


def hours(check: Check) -> None:
    """Hours of the paper's Tables 1 (ResNet-18) and 2 (ResNet-50) on this device: one run a task, method and seed."""
    size = check.size
    for network, variants in check.speed.items():
        if any(f"recipe, {method}" not in variants for method in PAPER_METHODS):
            continue  # its own line says why
        total = 0.0
        for method in PAPER_METHODS:
            own = METHODS[method].forward_passes + METHODS[method].backward_passes
            a_pass = variants[f"recipe, {method}"]["step_ms"] / size.batch / (2 * size.steps + own) / 3.6e6
            for task, count in TRAIN_IMAGES.items():
                passes = run_passes(paper(task, method=method), count - count // 20, count // 20)
                total += SEEDS * a_pass * (passes.forward + passes.backward)
        table_number, at = 2 if network == "resnet50" else 1, f"from steps of {size.batch} images, {size.side} pixels"
        figure = f"{total:,.1f} on {network}: {len(TRAIN_IMAGES)} tasks, 3 methods, {SEEDS} seeds, {at}"
        check.row(f"hours of table {table_number}", None, figure, hours=total)


if __name__ == "__main__":
    sys.exit(main())
