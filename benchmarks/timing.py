"""What the benchmarks share: variants timed in turn, ratios within one run, a table and a JSON file."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from distributed_autolora.hardware import available_cpus


def interleaved(
    variants: Mapping[str, Callable[[], object]], rounds: int, wait: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Times each variant once a round, one after the other, after one round that is not counted.

    A machine that others share changes its speed from second to second; what is timed side by side can still be
    compared.

    Args:
        variants: what to call, by name.
        rounds: how often, at least 1.
        wait: called before the clock is read, to wait for a device.

    Returns:
        Seconds by variant and round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            wait()
            start = time.perf_counter()
            run()
            wait()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], name: str, base: str) -> float:
    """Returns how many times as long as `base` the variant `name` takes: the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def machine() -> dict[str, Any]:
    """Returns what a reader must know of the machine beside the figures."""
    return {
        "processor": _processor(),
        "cpus": available_cpus(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns aligned columns, the first to the left, the others to the right."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def write(result: Mapping[str, Any], output: Path) -> None:
    """Writes the figures with the machine that they were taken on, and says where."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n")
    print(f"\nWritten to {output}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
