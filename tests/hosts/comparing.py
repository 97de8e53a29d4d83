"""Compares two finished runs in everything but times and rates."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from distributed_autolora.models import read_weights
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.training.checkpoint import TrainingState
from tests.reporting.runs import without_times

_RUN = "mine"
# What tells one run from another.
_OWN = ("mlflow", "folder")


class Verdict(NamedTuple):
    """One comparison, and how it ended."""

    what: str
    is_equal: bool
    seen: str


def run_folder(home: Path) -> Path:
    """Returns the folder of the only run of a home."""
    return home / "runs" / _RUN


def compare(expected: Path, actual: Path) -> list[Verdict]:
    """Compares the runs of two output homes."""
    by_folder = (_compare_weights, _compare_checkpoints, _compare_history, _compare_results, _compare_files)
    verdicts = [comparison(run_folder(expected), run_folder(actual)) for comparison in by_folder]
    return [*verdicts, _compare_tracking(expected, actual)]


def _compare_weights(expected: Path, actual: Path) -> Verdict:
    first, second = (read_weights(folder / "model.safetensors") for folder in (expected, actual))
    different = _different(first, second)
    epoch = RunFolder(actual).result().best_epoch
    seen = f"{len(first)} tensors of epoch {epoch}, {len(different)} differ"
    return Verdict("final weights, bit for bit", not different, seen)


def _compare_checkpoints(expected: Path, actual: Path) -> Verdict:
    newest = (max((folder / "train").glob("checkpoint_0*")) for folder in (expected, actual))
    first, second = map(TrainingState.load, newest)
    parts = ("model", "best", "momentum")
    different = [name for part in parts for name in _different(dict(getattr(first, part)), dict(getattr(second, part)))]
    by_image = ({"outcomes": one.outcomes, "newly_broken": one.newly_broken} for one in (first, second))
    different += _different(*by_image)
    count = sum(len(getattr(first, part)) for part in parts)
    return Verdict("last checkpoint, bit for bit", not different, f"{count} tensors, {len(different)} differ")


def _compare_history(expected: Path, actual: Path) -> Verdict:
    first, second = (without_times(RunFolder(folder).history()) for folder in (expected, actual))
    values = sum(map(len, first))
    return Verdict("history but for times and rates", first == second, f"{len(second)} epochs, {values} values")


def _compare_results(expected: Path, actual: Path) -> Verdict:
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (expected, actual))
    for result in (first, second):
        result["cost"] = {key: value for key, value in result["cost"].items() if not is_time(key)}
    keys = sorted(key for key in first.keys() | second.keys() if key not in _OWN and not is_time(key))
    different = [key for key in keys if first.get(key) != second.get(key)]
    return Verdict("result on the test split", not different, f"{len(keys)} entries, different: {different or 'none'}")


def _compare_files(expected: Path, actual: Path) -> Verdict:
    """A file that was written by halves would be one more; Ray Train's own folder holds different checkpoints."""
    first, second = (sorted(path.name for path in folder.iterdir()) for folder in (expected, actual))
    extra = sorted(set(second) ^ set(first))
    return Verdict("files of the run's folder", not extra, f"{len(second)} files, different: {extra or 'none'}")


def _compare_tracking(expected: Path, actual: Path) -> Verdict:
    what = "MLflow: one run, every step of every metric once"
    tracked = _metrics(actual)
    if len(tracked) != 1:
        return Verdict(what, False, f"{len(tracked)} runs")
    ((first, steps),), ((second, own_steps),) = _metrics(expected), tracked
    every = [*steps.values(), *own_steps.values()]
    repeated = sum(len(values) != len({step for step, _ in values}) for values in every)
    different = [key for key in steps.keys() | own_steps.keys() if not _same_metric(key, steps, own_steps)]
    is_equal = not repeated and not different and first.info.status == second.info.status == "FINISHED"
    points = sum(map(len, own_steps.values()))
    seen = (
        f"1 run, {second.info.status}; {len(own_steps)} metrics, {points} points; {repeated} metrics with a step "
        f"twice, {len(different)} metrics differ"
    )
    return Verdict(what, is_equal, seen)


def is_time(key: str) -> bool:
    """Tells whether a value of this name is a time or a rate, and so different in every run."""
    return "seconds" in key or key == "images_per_second"


def _same_metric(key: str, first: dict[str, Any], second: dict[str, Any]) -> bool:
    if is_time(key):
        return [step for step, _ in first.get(key, [])] == [step for step, _ in second.get(key, [])]
    return bool(first.get(key) == second.get(key))


def _metrics(home: Path) -> list[tuple[Run, dict[str, list[tuple[int, float]]]]]:
    """Returns the runs of a tracking store, each with step and value of every point of its metrics."""
    server = home / "server.db"
    client = MlflowClient(f"sqlite:///{server if server.exists() else home / 'mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "distributed_autolora"]
    found = []
    for run in client.search_runs([experiment.experiment_id]):
        points = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        found.append((run, {key: sorted((one.step, one.value) for one in values) for key, values in points.items()}))
    return found


def _different(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    """Returns the names of tensors that are not the same bits, or are there only once."""
    both = first.keys() & second.keys()
    names = sorted(first.keys() | second.keys())
    return [name for name in names if name not in both or not torch.equal(first[name], second[name])]
