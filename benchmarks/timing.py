"""What the benchmarks share: variants timed in turn, ratios within one run, a table and a JSON file."""

import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from distributed_autolora.hardware import available_cpus


@dataclass(frozen=True, kw_only=True)
class BenchmarkFlags:
    """Flags of every benchmark."""

    output: Path = Path(f"{Path(sys.argv[0]).stem}.json")
    """File to write the numbers to."""


F = TypeVar("F", bound=BenchmarkFlags)


def run_benchmark(
    flags_type: type[F],
    description: str | None,
    measure: Callable[[F], Mapping[str, Any]],
    show: Callable[[Any], None] = lambda result: None,
) -> None:
    """Reads the flags, measures on one thread, prints the tables and writes the numbers."""
    import tyro  # gpu_check.py runs without it

    flags = tyro.cli(flags_type, description=description)
    torch.set_num_threads(1)
    result = measure(flags)
    show(result)
    write(result, flags.output)


def interleaved(
    variants: Mapping[str, Callable[[], object]], rounds: int, wait: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Returns the seconds of each variant in each round; they take turns, because a shared machine's speed changes.

    The first of rounds + 1 is a warm-up. `wait` is called before the clock is read, to wait for a device.
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
    """Returns the median over the rounds of seconds of `name` / seconds of `base`."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def machine() -> dict[str, Any]:
    """Returns the hardware and the versions that the numbers depend on."""
    return {
        "processor": _processor(),
        "cpus": available_cpus(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def table(title: str, rows: Mapping[str, Mapping[str, object]]) -> str:
    """Returns a table with one line a row name and one column a key; numbers have three significant digits."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = [[title, *(key.replace("_", " ") for key in columns)]]
    lines += [[name, *(_text(row.get(key, "")) for key in columns)] for name, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(cells)).rstrip()
        for cells in (list(zip(line, widths, strict=True)) for line in lines)
    )


def _text(value: object) -> str:
    if isinstance(value, float):
        digits = 2 - math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0
        return f"{value:,.{max(0, digits)}f}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def write(result: Mapping[str, Any], output: Path) -> None:
    """Writes the numbers with the machine that they were measured on."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n")
    print(f"\nWritten to {output}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
