"""Measures the peak memory of a training step and of its attack against what must be there at once.

    python benchmarks/memory.py                      # a minute on one core
    python benchmarks/memory.py --device cuda        # PyTorch's own count on a GPU

What must be there: parameters, gradients, momentum, the attack network, the best state so far, the images, and what
autograd keeps for the backward (counted, each storage once, while a forward runs). Every step is measured in a fresh
process of one thread: on a CPU the highest resident memory that Linux saw, less what was resident before. Prints a
table in MiB and writes bytes as JSON. Larger batches are computed from the theory, not measured.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout has no package "benchmarks"

from benchmarks.memory_account import Case, Theory, account
from benchmarks.timing import table, write
from distributed_autolora.config import Precision
from distributed_autolora.hardware import cpu_precision, gpu_precision

Network = Literal["small_resnet", "resnet18"]
_SHAPES: dict[Network, dict[str, int]] = {
    "small_resnet": {"size": 28, "channels": 1, "batch": 64},
    "resnet18": {"size": 224, "channels": 3, "batch": 8},
}
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What to measure."""

    networks: tuple[Network, ...] = ("small_resnet", "resnet18")
    """small_resnet: 28 pixels, batches of 64; resnet18: 224 pixels, batches of 8."""
    methods: tuple[str, ...] = ("autolora", "vanilla", "twins")
    """Methods by their registered names."""
    precision: Precision = "auto"
    """Format of attack network and training step; auto: bfloat16 where the hardware computes it natively."""
    batch: int | None = None
    """Images of a batch, at least 2; None: the networks' own."""
    computed_batch: int = 128
    """Batch of ResNet-18 to compute the memory for from the theory."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to measure."""
    output: Path = Path("memory.json")
    """File to write the numbers to."""


def main() -> None:
    """Measures, prints and writes."""
    flags = tyro.cli(Flags, description=__doc__)
    result = measure(flags)
    show(result)
    write(result, flags.output)


def measure(flags: Flags) -> dict[str, Any]:
    """Returns everything that is written, in bytes."""
    choose = gpu_precision if flags.device == "cuda" else cpu_precision
    precision: Precision = choose() if flags.precision == "auto" else flags.precision
    cases = []
    for network in flags.networks:
        shape = _SHAPES[network] | ({} if flags.batch is None else {"batch": flags.batch})
        for method in flags.methods:
            case = Case(backbone=network, method=method, precision=precision, **shape)
            cases.append({**asdict(case), **_in_a_fresh_process(case, flags.device)})
    return {
        "device": flags.device,
        "cases": cases,
        "computed": [_computed(case, flags.computed_batch) for case in cases if case["backbone"] == "resnet18"],
    }


def show(result: dict[str, Any]) -> None:
    """Prints the tables."""
    cases = result["cases"]
    columns = [name.replace("_", " ") for name in Theory.__dataclass_fields__]
    for network in dict.fromkeys(case["backbone"] for case in cases):
        own = [case for case in cases if case["backbone"] == network]
        size, batch, precision = (own[0][key] for key in ("size", "batch", "precision"))
        print(f"{network}, {size} pixels, batch {batch}, {precision}, {result['device']}; MiB\n")
        rows = [_row(case, what) for case in own for what in ("attack", "step")]
        print(table(["", *columns, "theory", "measured", "ratio"], rows), end="\n\n")
    if result["computed"]:
        computed = result["computed"]
        print(f"resnet18, 224 pixels, batch {computed[0]['batch']}: computed from the theory, not measured; MiB\n")
        rows = [[f"{one['method']}, step", *_mebibytes(one["theory"])] for one in computed]
        print(table(["", *columns, "theory"], rows))
        if result["device"] == "cpu":
            print(
                "With a CPU's kernels: a GPU packs no weights of the attack network, but its kernels need workspaces."
            )


def _in_a_fresh_process(case: Case, device: str) -> dict[str, Any]:
    """Returns `account` of a case; the process's allocator gives every larger block back when it is freed."""
    before = dict(os.environ)
    os.environ.update(OMP_NUM_THREADS="1", MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
    try:
        with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(account, (case, folder, device))
    finally:
        os.environ.clear()
        os.environ.update(before)


def _computed(case: dict[str, Any], batch: int) -> dict[str, Any]:
    """Returns the theory of a larger batch."""
    whole, half = (Theory(**case["theory"][name]) for name in ("step", "step_at_half"))
    theory = whole.at_batch(half, case["batch"], case["batch"] // 2, batch)
    return {"method": case["method"], "batch": batch, "theory": asdict(theory)}


def _row(case: dict[str, Any], what: str) -> list[str]:
    theory, measured = case["theory"][what], case["measured"][what]
    ratio = measured / sum(theory.values())
    return [f"{case['method']}, {what}", *_mebibytes(theory), f"{measured / _MIB:.1f}", f"{ratio:.2f}"]


def _mebibytes(theory: dict[str, int]) -> list[str]:
    return [f"{value / _MIB:.1f}" for value in (*theory.values(), sum(theory.values()))]


if __name__ == "__main__":
    main()
