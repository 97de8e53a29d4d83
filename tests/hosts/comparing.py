"""Compares two finished runs in everything but times and rates."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mlflow import MlflowClient

from distributed_autolora.models import read_weights
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.training.checkpoint import TrainingState
from tests.reporting.runs import without_times

_OWN = ("mlflow", "folder")
"""What tells one run from another."""


class Verdict(NamedTuple):
    """One comparison, and how it ended."""

    what: str
    is_equal: bool
    seen: str


def run_folder(home: Path) -> Path:
    """Returns the folder of the only run of a home."""
    return home / "runs" / "mine"


def compare(expected: Path, actual: Path) -> list[Verdict]:
    """Compares the runs of two output homes; each must be the only one there."""
    verdicts, found = [], _contents(actual)
    for what, values in _contents(expected).items():
        different = [name for name in sorted(values.keys() | found[what].keys()) if _differs(name, values, found[what])]
        seen = f"{len(found[what])} values, different: {', '.join(map(str, different)) or 'none'}"
        verdicts.append(Verdict(what, not different, seen))
    return verdicts


def _contents(home: Path) -> dict[str, dict[Any, Any]]:
    folder = run_folder(home)
    state = TrainingState.load(max((folder / "train").glob("checkpoint_0*")))
    tensors = {
        f"{part} {name}": one for part in ("model", "best", "momentum") for name, one in getattr(state, part).items()
    }
    result = json.loads((folder / "result.json").read_text())
    result |= {f"cost {key}": value for key, value in result.pop("cost").items()}
    return {
        "final weights, bit for bit": read_weights(folder / "model.safetensors"),
        "last checkpoint, bit for bit": tensors | {"outcomes": state.outcomes, "newly broken": state.newly_broken},
        "history but for times and rates": dict(enumerate(without_times(RunFolder(folder).history()), 1)),
        "result on the test split": {k: v for k, v in result.items() if k not in _OWN and not _is_time(k)},
        # A file that was written by halves would be one more; Ray Train's own folder holds different checkpoints.
        "files of the run's folder": dict.fromkeys(path.name for path in folder.iterdir()),
        "MLflow: one run, every step of every metric once": tracked(home),
    }


def tracked(home: Path) -> dict[str, Any]:
    """Returns the points of every metric, of times and rates the steps only; and how many points are there twice."""
    server = home / "server.db"
    client = MlflowClient(f"sqlite:///{server if server.exists() else home / 'mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "distributed_autolora"]
    run, *others = client.search_runs([experiment.experiment_id])
    points = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    found: dict[str, Any] = {
        key: sorted((one.step, 0.0 if _is_time(key) else one.value) for one in values) for key, values in points.items()
    }
    twice = sum(len(values) - len({one.step for one in values}) for values in points.values())
    return found | {"further runs": len(others), "is finished": run.info.status == "FINISHED", "steps twice": twice}


def _is_time(key: str) -> bool:
    """Tells whether a value of this name is a time or a rate, and so different in every run."""
    return "seconds" in key or key == "images_per_second"


def _differs(name: Any, first: dict[Any, Any], second: dict[Any, Any]) -> bool:
    if name not in first or name not in second:
        return True
    one, other = first[name], second[name]
    return not (torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other)
