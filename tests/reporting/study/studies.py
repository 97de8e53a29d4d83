"""Made-up study folders in exactly the documented format, finished or broken off."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.records import (
    Accuracies,
    AccuracyCount,
    AttackResult,
    Cost,
    EpochRecord,
    GradientSimilarity,
    RunResult,
    SanityCheck,
    to_json,
    total_cost,
)
from distributed_autolora.records.reader import FORMAT
from tests.reporting import runs
from tests.reporting.evaluations import LABEL, evaluation

LRS, DECAYS, GAMMAS = [0.01, 0.003, 0.001], [1e-4, 1e-5], [0.4, 1.0, 3.0]
ATTACKS = ("natural", "pgd10")
LABELS = {"autolora": "AutoLoRa", "twins": "TWINS", "vanilla-rft": "Vanilla RFT"}
ACCURACIES = {"autolora": (0.91, 0.80, 0.74), "twins": (0.90, 0.83, 0.79), "vanilla-rft": (0.885, 0.775, 0.73)}
"""Natural, PGD-10 and AutoAttack accuracy that an arm scatters about."""
ERROR = "RayTaskError: worker 1 | died\n  of a signal"


def study(folder: Path, *, seeds: int = 3, images: int = 400, autoattack: bool = True, **changes: Any) -> Path:
    """Writes a finished tuned comparison: one trial of TWINS failed, one of vanilla RFT stopped early.

    `autoattack`: whether AutoLoRa and TWINS have an evaluation; vanilla RFT never has. `changes`: of study.json.
    """
    grids: dict[str, dict[str, list[Any]]] = {
        "autolora": {},
        "twins": {"optimization.lr": LRS, "optimization.weight_decay": DECAYS, "method.twins_gamma": GAMMAS},
        "vanilla-rft": {"optimization.lr": LRS, "optimization.weight_decay": DECAYS},
    }
    description = {
        "format": FORMAT,
        "study": "tuned_baselines",
        "task": "fashion-mnist-5-9",
        "title": "AutoLoRa against searched TWINS and vanilla RFT",
        "paper_tables": ["1", "2", "8"],
        "backbone": "small_resnet",
        "pretraining": "Fashion-MNIST classes 0-4, epsilon 0.1",
        "seeds": list(range(seeds)),
        "search_seed": 0,
        "scheduler": "grid",
        "epsilon": 0.1,
        "commands": ["python jobs/compare.py --study tuned_baselines --task fashion-mnist-5-9"],
        "reference": "autolora",
        "arms": [{"id": arm, "label": LABELS[arm], "grid": grid} for arm, grid in grids.items()],
    } | changes
    entries: list[dict[str, Any]] = []
    for name, grid in grids.items():
        entries += _search(folder, name, grid) if grid else []
        chosen = {key: values[0] for key, values in grid.items()}
        for seed in range(seeds):
            entries.append(entry(name, "final", seed, chosen, f"final-{len(entries)}"))
            final_run(folder, entries[-1], images, autoattack and name != "vanilla-rft")
    write(folder, description, entries)
    return folder


def write(folder: Path, description: dict[str, Any], entries: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(description))
    (folder / "runs.json").write_text(json.dumps({"format": FORMAT, "runs": entries}))


def write_entries(folder: Path, entries: list[dict[str, Any]]) -> None:
    write(folder, json.loads((folder / "study.json").read_text()), entries)


def entries_of(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "runs.json").read_text())["runs"])


def entry(arm: str, phase: str, seed: int, settings: dict[str, Any], run: str | None, **rest: Any) -> dict[str, Any]:
    base = {"arm": arm, "phase": phase, "seed": seed, "settings": settings, "run": run}
    return base | {"status": "finished", "error": None} | rest


def history(epochs: int, *, vanilla: bool, lift: float = 0.0, similarity: float = 0.1) -> list[EpochRecord]:
    """Returns records with passes, gradient similarity under a method without low-rank branch, and workers."""
    return [
        replace(
            record,
            best_robust_accuracy=record.best_robust_accuracy + lift,
            robust=runs.count(record.robust.accuracy + lift),
            gradient_similarity=GradientSimilarity(similarity + 0.01 * record.epoch, 0.0) if vanilla else None,
        )
        for record in runs.history(epochs, vanilla=vanilla)
    ]


def final_run(folder: Path, told: dict[str, Any], images: int, autoattack: bool) -> None:
    home = folder / "runs" / told["run"]
    seed, arm = told["seed"], told["arm"]
    shift = ACCURACIES[arm][1] - 0.8 + 0.004 * seed
    records = history(20, vanilla=arm != "autolora", lift=shift, similarity=0.1 + shift)
    outcomes = _outcomes(images, arm, seed)
    label = outcomes["label"]
    right = (outcomes[f"{name}_prediction"] == label for name in ("natural", "pgd10"))
    result = replace(
        runs.result(records),
        name=told["run"],
        seed=seed,
        test=Accuracies(*(AccuracyCount(int(part.sum()), len(part)) for part in right)),
        test_images=images,
        split_digest="ab12" * 16,
        cost=Cost(seconds=128.0, worker_seconds=256.0 + seed, forward_passes=280000, backward_passes=220000),
    )
    _write_run(home, records, result, seed)
    pq.write_table(pa.table(outcomes), home / "outcomes.parquet")
    if autoattack:
        _evaluate(home, outcomes, arm, seed)


def _search(folder: Path, arm: str, grid: dict[str, list[Any]]) -> list[dict[str, Any]]:
    entries = []
    for index, values in enumerate(itertools.product(*grid.values())):
        settings = dict(zip(grid, values, strict=True))
        told = entry(arm, "search", 0, settings, f"search-{arm}-{index}")
        epochs = 20
        if (arm, index) == ("twins", 4):
            told, epochs = told | {"status": "failed", "error": ERROR}, 3
        if (arm, index) == ("vanilla-rft", 5):
            told, epochs = told | {"status": "stopped_early"}, 6
        records = history(epochs, vanilla=True, lift=-0.02 * index / len(LRS))
        result = replace(
            runs.result(records), split_digest="ab12" * 16, test=None, test_images=None, cost=total_cost(records)
        )
        _write_run(folder / "runs" / told["run"], records, result if epochs == 20 else None, 0)
        entries.append(told)
    return entries


def _write_run(home: Path, records: list[EpochRecord], result: RunResult | None, seed: int) -> None:
    home.mkdir(parents=True)
    config = ExperimentConfig(seed=seed).to_dict()
    config["model"] |= {"backbone": "small_resnet", "mean": [0.286], "std": [0.353]}
    config["data"]["digest"] = "cd34" * 16
    (home / "config.yaml").write_text(yaml.safe_dump(config))
    RunFolder(home).write_history(records)
    if result is not None:
        RunFolder(home).write_result(result)


def _outcomes(images: int, arm: str, seed: int) -> dict[str, Any]:
    """An image is hard or easy for all arms alike, with some noise of the arm and the seed."""
    hardness = np.random.default_rng(0).uniform(size=images)
    noise = np.random.default_rng([seed, *LABELS[arm].encode()]).normal(0, 0.03, images)
    label = np.arange(images) % 5
    right = {name: hardness + noise < ACCURACIES[arm][i] for i, name in enumerate(ATTACKS)}
    return {
        "row": np.arange(images),
        "row_id": [f"{index:05d}.png" for index in range(images)],
        "label": label,
        **{f"{name}_prediction": np.where(ok, label, (label + 1) % 5) for name, ok in right.items()},
    }


def _evaluate(home: Path, outcomes: dict[str, Any], arm: str, seed: int) -> None:
    rows = np.arange(0, len(outcomes["row"]), 2)
    hardness = np.random.default_rng(0).uniform(size=len(outcomes["row"]))[rows]
    noise = np.random.default_rng([seed, *LABELS[arm].encode()]).normal(0, 0.03, len(outcomes["row"]))[rows]
    robust = {"robust/autoattack": hardness + noise < ACCURACIES[arm][2]}
    robust["robust/pgd10"] = outcomes["pgd10_prediction"][rows] == outcomes["label"][rows]
    kept = {key: np.asarray(values)[rows] for key, values in outcomes.items() if key != "pgd10_prediction"}
    found = evaluation(
        model=str(home),
        epsilon=0.1,
        test_images=len(rows),
        test_images_available=len(outcomes["row"]),
        natural=_count(kept["natural_prediction"] == kept["label"]),
        attacks=(
            AttackResult("pgd10", "PGD-10 (step epsilon / 4 = 0.025, clean start)", _count(robust["robust/pgd10"])),
            AttackResult("autoattack", LABEL, _count(robust["robust/autoattack"])),
        ),
        sanity=(
            SanityCheck("zero gradients", "PASS", "0 of 200", {}),
            SanityCheck("black box beats white box", "WARN", "Square broke 3 more", {}),
        ),
        package_versions={"torch": "2.14.1", "pyautoattack": "0.2.0"},
    )
    (home / "evaluation").mkdir()
    (home / "evaluation" / "evaluation.json").write_text(json.dumps(to_json(found)))
    pq.write_table(pa.table(kept | robust), home / "evaluation" / "outcomes.parquet")


def _count(right: Any) -> AccuracyCount:
    return AccuracyCount(int(right.sum()), len(right))
