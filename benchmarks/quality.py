"""Checks that the fast path costs no accuracy: trains in its number formats and in float32, evaluates in float32.

    python benchmarks/quality.py                         # the demo's recipe, three seeds
    python benchmarks/quality.py --epochs 2 --seeds 0 1  # shorter

A process of one thread trains each model. All models are then evaluated on the shipped task's test images in float32,
on the plain network without folded batch norm, by PGD with 10 and 100 steps from the clean image. This checks the
implementation: no setting is chosen by these accuracies. Results are kept in --folder: the same command resumes with
the rest, a new folder starts afresh.
"""

import json
import multiprocessing
import os
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout has no package "benchmarks"

from benchmarks.timing import BenchmarkFlags, run_benchmark, table
from distributed_autolora.config import ComputeConfig, ExperimentConfig
from distributed_autolora.config.recipes import demo
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.data.catalog import embedded_backbone, embedded_folder
from distributed_autolora.evaluation.attacks import parse
from distributed_autolora.evaluation.chunks import evaluate_chunk
from distributed_autolora.files import atomic_write
from distributed_autolora.hardware import available_cpus
from distributed_autolora.training.loop import fit
from distributed_autolora.training.methods.registry import fresh_classifier
from distributed_autolora.training.reporter import NoReports
from distributed_autolora.training.task_data import TaskData

FAST, FLOAT32 = "fast", "float32"
PATHS = {
    FAST: ComputeConfig(attack_precision="bfloat16", train_precision="bfloat16"),
    FLOAT32: ComputeConfig(attack_precision="float32", train_precision="float32"),
}
"""Number formats of the attack and of the training step."""
ATTACKS = parse("pgd10,pgd100")
RULE = (
    "Rule: an accuracy is within seed noise if the 95 % interval (Student's t) of its paired differences (fast less "
    "float32, seed by seed) contains 0."
)


@dataclass(frozen=True, kw_only=True)
class Flags(BenchmarkFlags):
    """What to train."""

    epochs: int | None = None
    """Largest number of passes over the training images; None: the recipe's."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each is trained once in float32 and once on the fast path."""
    jobs: int = field(default_factory=available_cpus)
    """Processes at a time, of one thread each."""
    folder: Path = Path("quality")
    """Keeps the results of finished models."""


def measure(flags: Flags) -> dict[str, Any]:
    """Trains and evaluates, and returns everything that is written."""
    base = demo()
    # Training itself does not open the test split.
    base = replace(base, evaluation=replace(base.evaluation, test_split=False))
    if flags.epochs is not None:
        base = replace(base, optimization=replace(base.optimization, epochs=flags.epochs))
    configs = [replace(base, seed=seed, compute=compute) for seed in flags.seeds for compute in PATHS.values()]
    os.environ["OMP_NUM_THREADS"] = "1"  # before the new processes import torch
    flags.folder.mkdir(parents=True, exist_ok=True)
    data, weights = str(embedded_folder()), str(embedded_backbone())
    with ProcessPoolExecutor(flags.jobs, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(train_and_evaluate, config, data, weights, flags.folder) for config in configs]
        return compare([future.result() for future in futures])


def train_and_evaluate(config: ExperimentConfig, data_folder: str, weights: str | None, folder: Path) -> dict[str, Any]:
    """Returns the result of one model, its correctly classified test images; a finished one is read from `folder`."""
    path = next(path for path, compute in PATHS.items() if compute == config.compute)
    file = folder / f"{path}-seed{config.seed}-{config.digest()[:8]}.json"
    if file.is_file():
        return dict(json.loads(file.read_text()))
    torch.set_num_threads(1)
    data, start = TaskData(config, data_folder, torch.device("cpu")), time.perf_counter()
    result = fit(config, data, weights, NoReports())
    seconds = time.perf_counter() - start
    model = fresh_classifier(config, data.num_classes, None)
    model.load_state_dict(result.weights)
    threat_model = ThreatModel(config.threat_model.norm, config.threat_model.epsilon)
    correct: Counter[str] = Counter()
    for rows in torch.arange(data.num_test).split(250):
        x, y = data.test_batch(rows)
        # Both attacks start at the clean image, so the seed has no effect.
        step_size = config.eval_attack.step_size
        columns = evaluate_chunk(model, x, y, threat_model=threat_model, attacks=ATTACKS, seed=0, step_size=step_size)
        correct["natural_accuracy"] += int((columns["natural_prediction"] == y.numpy()).sum())
        for attack in ATTACKS:
            correct[f"robust_accuracy/{attack.name}"] += int(columns[f"robust/{attack.name}"].sum())
    found = {"path": path, "seed": config.seed, "images": data.num_test, "correct": correct}
    found["seconds_of_training"] = seconds
    with atomic_write(file) as unfinished:
        unfinished.write_text(json.dumps(found, indent=2) + "\n")
    print(f"{path}, seed {config.seed}: trained in {seconds / 60:.1f} minutes", flush=True)
    return found


def compare(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns accuracies by seed, differences and their interval, from the results of `train_and_evaluate`."""
    accuracies: dict[str, Any] = {}
    for name in found[0]["correct"]:
        fast, float32 = (
            {f"seed {one['seed']}": one["correct"][name] / one["images"] for one in found if one["path"] == path}
            for path in PATHS
        )
        # Rounded, so that equal accuracies differ by exactly 0.
        differences = {seed: round(fast[seed] - float32[seed], 12) for seed in fast}
        interval = confidence_interval(list(differences.values()))
        accuracies[name] = {FAST: fast, FLOAT32: float32, "difference": differences, "interval": interval}
    outcome = {"accuracies": accuracies, "verdict": verdict(accuracies, found)}
    return {"images": found[0]["images"], **outcome, "runs": found}


def confidence_interval(differences: list[float]) -> tuple[float, float] | None:
    """Returns the 95 % interval of the mean by Student's t; None for one value."""
    if (count := len(differences)) == 1:
        return None
    mean = statistics.fmean(differences)
    half = float(t.ppf(0.975, count - 1)) * statistics.stdev(differences) / count**0.5
    return mean - half, mean + half


def verdict(accuracies: dict[str, Any], found: list[dict[str, Any]]) -> str:
    """Returns the outcome of `RULE` over all accuracies, and the errors under the strongest attack, in one line."""
    strongest = list(accuracies)[-1]
    errors = [sum(one["images"] - one["correct"][strongest] for one in found if one["path"] == path) for path in PATHS]
    total = sum(one["images"] for one in found if one["path"] == FAST)
    counted = f"{strongest.rpartition('/')[2]} finds {errors[0]} errors on the fast path's models and "
    counted += f"{errors[1]} on float32's, of {total} each"
    intervals = {name: one["interval"] for name, one in accuracies.items()}
    if None in intervals.values():
        return f"Undecided: one seed has no spread; {counted}."
    outside = [name for name, (low, high) in intervals.items() if not low <= 0 <= high]
    if outside:
        return f"NOT within seed noise: {', '.join(outside)}; {counted}."
    widest = 100 * max(high - low for low, high in intervals.values()) / 2
    return f"Within seed noise; a mean difference beyond {widest:.1f} points would not be; {counted}."


def show(result: dict[str, Any]) -> None:
    """Prints the table in per cent, the rule and the verdict."""
    print(f"\n{result['images']} test images, evaluated in float32. No setting is chosen by these accuracies.\n")
    rows: dict[str, dict[str, str]] = {}
    for name, one in result["accuracies"].items():
        for what in (FAST, FLOAT32, "difference"):
            values = {**one[what], "mean": statistics.fmean(one[what].values())}
            rows[f"{name}, {what}"] = {key: f"{100 * value:.1f}" for key, value in values.items()}
        if one["interval"] is not None:
            rows[f"{name}, difference"]["95 % interval"] = " to ".join(f"{100 * end:.1f}" for end in one["interval"])
    print(f"{table('per cent', rows)}\n\n{RULE}\n{result['verdict']}")


if __name__ == "__main__":
    run_benchmark(Flags, __doc__, measure, show)
