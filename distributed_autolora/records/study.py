"""A study on disk: what is compared (study.json), and its runs so far (runs.json)."""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from distributed_autolora.records.reader import from_json, list_from_json, list_to_json
from distributed_autolora.records.run import TrackedRun

Settings = dict[str, float]
"""Dotted config keys and their values: one point of a grid; empty: the config as it is."""
Phase = Literal["search", "final"]
RunStatus = Literal["pending", "running", "finished", "failed", "diverged", "stopped_early"]
"""A failed run may succeed at another attempt; a diverged one would diverge again."""

_SHORT = {"optimization.lr": "lr", "optimization.weight_decay": "wd", "method.twins_gamma": "gamma"}
_OTHERWISE = "give another --name"


@dataclass(frozen=True, kw_only=True)
class ArmRecord:
    """An arm of a study.

    Attributes:
        id: unique in its study.
        grid: dotted config keys and the values to try; empty: no search.
        reference: id of the arm that it is compared with; None: the study's reference.
        config_digest: of all that determines its numbers but the seed and the grid.
    """

    id: str
    label: str
    grid: dict[str, tuple[float, ...]] = field(default_factory=dict)
    reference: str | None = None
    config_digest: str = ""


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """What is compared.

    Attributes:
        images: name of the images in their own files, where it is not the task's.
        paper_tables: tables of the paper that the study repeats.
        pretraining: weights that the runs start from.
        epsilon: largest norm of a perturbation, of pixel values in [0, 1].
        norm: of the threat model.
        seeds: of the final runs.
        search_seed: of the trials.
        reference: id of the arm that the others are compared with.
        arms: those that were asked for so far, in the order of the report.
        attack_images: test images that the final runs were evaluated on by more attacks; None: on all.
        precision: number format that was chosen for all runs; None: not yet.
        mlflow: the study's own MLflow run; None: not yet.
        commands: distinct commands that were typed, in order.
    """

    study: str
    title: str
    task: str
    images: str | None = None
    paper_tables: tuple[str, ...]
    backbone: str
    pretraining: str
    epsilon: float
    norm: str = "linf"
    seeds: tuple[int, ...]
    search_seed: int
    scheduler: Literal["grid", "asha"]
    reference: str
    arms: tuple[ArmRecord, ...]
    attack_images: int | None = None
    precision: str | None = None
    mlflow: TrackedRun | None = None
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study and its state.

    Attributes:
        phase: trial of a search, or final run.
        settings: point of the arm's grid.
        run: name of its folder; None for a final run whose search has no best trial yet.
    """

    arm: str
    phase: Phase
    seed: int
    settings: Settings
    run: str | None
    status: RunStatus = "pending"
    error: str | None = None

    @property
    def label(self) -> str:
        """Phase, arm, settings and seed: "search twins lr=0.003 gamma=1 seed 0"."""
        return " ".join(filter(None, [self.phase, self.arm, settings_text(self.settings), f"seed {self.seed}"]))


def settings_text(settings: Settings) -> str:
    """Returns "lr=0.003 gamma=1", or an empty text."""
    return " ".join(f"{_SHORT.get(key, key.rpartition('.')[2])}={value:g}" for key, value in settings.items())


study_from_json = partial(from_json, StudyRecord, otherwise=_OTHERWISE)
runs_to_json = partial(list_to_json, "runs")
runs_from_json = partial(list_from_json, PlannedRun, "runs", otherwise=_OTHERWISE)
