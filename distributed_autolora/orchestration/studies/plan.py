"""Which runs a study consists of, their names, and which trial of a search is the best."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.records import EpochRecord, Phase, PlannedRun, Settings, settings_text
from distributed_autolora.studies import Arm, Study, with_settings

_LONGEST_NAME = 90


def plan_search(study: Study, seed: int) -> list[PlannedRun]:
    """Returns one run for each point of each arm's grid, on the search seed."""
    return [planned(arm.id, "search", seed, settings) for arm in study.arms if arm.grid for settings in arm.points()]


def plan_final(study: Study, seeds: Sequence[int], best: Mapping[str, Settings]) -> list[PlannedRun]:
    """Returns one run for each arm and seed: with the settings of the best trial, where it is searched.

    Args:
        study: the study.
        seeds: seeds of the final runs.
        best: settings of the best trial by arm; the final runs of a searched arm that is not in it have no name yet.
    """
    runs = []
    for arm in study.arms:
        for seed in seeds:
            if arm.grid and arm.id not in best:
                runs.append(PlannedRun(arm.id, "final", seed, {}, None))
            else:
                runs.append(planned(arm.id, "final", seed, best.get(arm.id, {})))
    return runs


def planned(arm: str, phase: Phase, seed: int, settings: Settings) -> PlannedRun:
    """Returns a pending run with its name."""
    words = " ".join(filter(None, [phase, arm, settings_text(settings)])).replace("=", "").replace("+", "")
    name = re.sub(r"[^A-Za-z0-9.]+", "-", words)[:_LONGEST_NAME].strip("-.")
    return PlannedRun(arm, phase, seed, dict(settings), f"{name}-seed{seed}")


def batches(runs: Iterable[PlannedRun], *, by_seed: bool) -> list[list[PlannedRun]]:
    """Returns runs in the order of their seeds: all at once, or each seed for itself.

    Args:
        runs: final runs.
        by_seed: runs of a seed are evaluated before those of the next are made, so that every arm has a number early.
    """
    ordered = sorted(runs, key=lambda run: run.seed)
    return [list(group) for _, group in groupby(ordered, key=lambda run: run.seed)] if by_seed else [ordered]


def run_config(arm: Arm, run: PlannedRun, *, output: str, mlflow_uri: str | None) -> ExperimentConfig:
    """Returns the config of one run: a search never opens the test split, a final run reads it once.

    Args:
        arm: the run's arm.
        run: the run; it has a name.
        output: folder of the study.
        mlflow_uri: where it is tracked.
    """
    config = with_settings(arm.config, run.settings)
    return replace(
        config,
        seed=run.seed,
        evaluation=replace(config.evaluation, test_split=run.phase == "final", linear_head=False),
        run=replace(config.run, name=run.run, output=output, mlflow_uri=mlflow_uri),
    )


def validation_score(history: Sequence[EpochRecord]) -> float | None:
    """Returns the best robust validation accuracy of a run, which a search selects by; None without an epoch."""
    return history[-1].best_robust_accuracy if history else None


def best_trial(trials: Iterable[tuple[PlannedRun, float | None]]) -> Settings | None:
    """Returns the settings of the finished trial with the highest validation score (of equals the first), if any.

    Args:
        trials: of one arm, in grid order, with their scores.
    """
    finished = [(run, score) for run, score in trials if run.status == "finished" and score is not None]
    return max(finished, key=lambda pair: pair[1])[0].settings if finished else None
