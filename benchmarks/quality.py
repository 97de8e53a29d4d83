"""Checks that the fast path costs no accuracy: trains in its number formats and in float32, and judges both in float32.

    python benchmarks/quality.py                         # the demo's recipe, three seeds; says first how long it takes
    python benchmarks/quality.py --epochs 2 --seeds 0 1  # shorter

Each of the two paths is trained with every seed by a plain process of one thread. All models are then judged on the
shipped task's test images in float32, on the plain network without folded batch norm, by PGD with 10 and 100 steps
from the clean image. That is a check of the implementation: nothing is chosen by these accuracies. What is finished
is kept in --folder, and the same command goes on with the rest; a new folder begins afresh. Prints a table and writes
the same as JSON.
"""

from __future__ import annotations

import math
import statistics
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout has no package "benchmarks"

from benchmarks.quality_runs import FAST, FLOAT32, PATHS, expected_seconds, tasks_of, work_off
from benchmarks.timing import table, write
from distributed_autolora.config.recipes import demo
from distributed_autolora.hardware import available_cpus
from distributed_autolora.reporting.statistics import standard_deviation

_CONFIDENCE = 0.95
RULE = (
    "Rule: within seed noise is an accuracy whose paired differences (fast less float32, seed by seed) have a "
    "95 % interval of Student's t that contains 0."
)


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What to train."""

    epochs: int | None = None
    """Largest number of passes over the training images; None: the recipe's."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each is trained once a path."""
    jobs: int = field(default_factory=available_cpus)
    """Processes at a time, of one thread each."""
    folder: Path = Path("quality")
    """Keeps what is finished: weights, and what was found."""
    output: Path = Path("quality.json")
    """File to write the numbers to."""


@dataclass(frozen=True)
class Paired:
    """One accuracy of both paths, one value a seed, in [0, 1]."""

    fast: tuple[float, ...]
    float32: tuple[float, ...]

    @property
    def differences(self) -> tuple[float, ...]:
        """Fast less float32; equal accuracies differ by exactly 0."""
        return tuple(round(fast - plain, 12) for fast, plain in zip(self.fast, self.float32, strict=True))

    @property
    def half_width(self) -> float | None:
        """How far the interval of the mean difference reaches to either side; None for one seed."""
        from scipy.stats import t

        deviation, count = standard_deviation(self.differences), len(self.differences)
        if deviation is None:
            return None
        return float(t.ppf((1 + _CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean difference, Student's t; None for one seed."""
        mean, half = statistics.fmean(self.differences), self.half_width
        return None if half is None else (mean - half, mean + half)

    @property
    def is_noise(self) -> bool | None:
        """Tells whether the interval contains 0; None for one seed."""
        return None if self.interval is None else self.interval[0] <= 0 <= self.interval[1]


def main() -> None:
    """Trains, judges, prints and writes."""
    flags = tyro.cli(Flags, description=__doc__)
    torch.set_num_threads(1)
    config = demo()
    if flags.epochs is not None:
        config = replace(config, optimization=replace(config.optimization, epochs=flags.epochs))
    tasks = tasks_of(config, flags.seeds, flags.folder)
    missing = [task for task in tasks if task.found() is None]
    print(f"{len(missing)} of {len(tasks)} models are to be trained and judged.", flush=True)
    if missing:
        jobs = min(flags.jobs, len(missing))
        minutes = expected_seconds(missing) / jobs / 60
        print(
            f"That takes {minutes:.0f} minutes at most with {jobs} at a time, if this machine stays as fast.",
            flush=True,
        )
    result = compare(work_off(tasks, flags.jobs))
    show(result)
    write(result, flags.output)


def compare(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns everything that is written.

    Args:
        found: from `train_and_judge`, both paths of every seed.
    """
    runs = {(one["path"], one["seed"]): one for one in found}
    seeds = sorted({one["seed"] for one in found})
    pairs = {
        name: Paired(*(tuple(_accuracy(runs[path, seed], name) for seed in seeds) for path in (FAST, FLOAT32)))
        for name in found[0]["correct"]
    }
    return {
        "seeds": seeds,
        "images": found[0]["images"],
        "formats": {path: asdict(formats) for path, formats in PATHS.items()},
        "accuracies": {name: _described(pair) for name, pair in pairs.items()},
        "rule": RULE,
        "verdict": verdict(pairs, found),
        "seconds_of_training": {
            path: statistics.median(runs[path, seed]["seconds_of_training"] for seed in seeds) for path in PATHS
        },
        "runs": found,
    }


def verdict(pairs: dict[str, Paired], found: list[dict[str, Any]]) -> str:
    """Returns what `RULE` says of all accuracies, and the errors that the strongest attack found, in one line."""
    strongest = list(pairs)[-1]
    errors = {
        path: sum(one["images"] - one["correct"][strongest] for one in found if one["path"] == path) for path in PATHS
    }
    total = sum(one["images"] for one in found if one["path"] == FAST)
    counted = f"{strongest.rpartition('/')[2]} finds {errors[FAST]} errors on the fast path's models and "
    counted += f"{errors[FLOAT32]} on float32's, of {total} each"
    widths = [pair.half_width for pair in pairs.values()]
    if any(width is None for width in widths):
        return f"Undecided: one seed has no spread; {counted}."
    outside = [name for name, pair in pairs.items() if not pair.is_noise]
    if outside:
        return f"NOT within seed noise: {', '.join(outside)}; {counted}."
    seen = 100 * max(width for width in widths if width is not None)
    return f"Within seed noise; a mean difference beyond {seen:.1f} points would not be; {counted}."


def show(result: dict[str, Any]) -> None:
    """Prints the table in per cent, the rule and the verdict."""
    print(
        f"\n{result['images']} test images, judged in float32. It checks the implementation; nothing is chosen by it.\n"
    )
    rows = []
    for name, one in result["accuracies"].items():
        rows += [[f"{name}, {path}", *_per_cent([*one[path], statistics.fmean(one[path])]), "", ""] for path in PATHS]
        interval = "" if one["interval"] is None else " to ".join(_per_cent(one["interval"], "+.2f"))
        deviation = "" if one["deviation"] is None else _per_cent([one["deviation"]], ".2f")[0]
        differences = _per_cent([*one["differences"], one["mean_difference"]], "+.2f")
        rows.append([f"{name}, difference", *differences, deviation, interval])
    seeds = [f"seed {seed}" for seed in result["seeds"]]
    print(table(["per cent", *seeds, "mean", "deviation", "95 % interval"], rows))
    seconds = result["seconds_of_training"]
    print(
        f"\nTraining took {seconds[FAST] / 60:.1f} (fast) and {seconds[FLOAT32] / 60:.1f} minutes (float32), medians."
    )
    print(f"{result['rule']}\n{result['verdict']}")


def _accuracy(run: dict[str, Any], name: str) -> float:
    return float(run["correct"][name] / run["images"])


def _described(pair: Paired) -> dict[str, Any]:
    return {
        FAST: list(pair.fast),
        FLOAT32: list(pair.float32),
        "differences": list(pair.differences),
        "mean_difference": statistics.fmean(pair.differences),
        "deviation": standard_deviation(pair.differences),
        "interval": None if pair.interval is None else list(pair.interval),
        "is_noise": pair.is_noise,
    }


def _per_cent(values: list[float], form: str = ".1f") -> list[str]:
    return [format(100 * value, form) for value in values]


if __name__ == "__main__":
    main()
