"""A study folder as frozen records: which arms, which runs, and what each of them left."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from distributed_autolora.errors import UserError
from distributed_autolora.files import read_json
from distributed_autolora.records import (
    WORST_CASE,
    AccuracyCount,
    ArmRecord,
    AttackResult,
    EpochRecord,
    Evaluation,
    MaskingSummary,
    PlannedRun,
    RunResult,
    StudyRecord,
    from_json,
    history_from_json,
    runs_from_json,
    study_from_json,
)
from distributed_autolora.reporting.format import attack_label
from distributed_autolora.reporting.masking import masking_summary

Parsed = TypeVar("Parsed")
_ADVICE = "Restore it, or run that part of the study again."
NATURAL = "natural_accuracy"
ROBUST = "robust_accuracy/"
AUTOATTACK = ROBUST + "autoattack"
APGD = ROBUST + "apgd"
"""The first two attacks of AutoAttack."""


@dataclass(frozen=True)
class StudyRun(PlannedRun):
    """A planned run and all that its folder holds so far; "failed" includes diverged."""

    folder: Path | None = None
    history: list[EpochRecord] = field(default_factory=list)
    result: RunResult | None = None
    masking: MaskingSummary | None = None
    """What the checks by a stronger attack found; None without a check."""
    evaluations: dict[Path, Evaluation] = field(default_factory=dict)
    """By their file of outcomes, the newest first; of two by the same attack the first counts."""

    @property
    def counts(self) -> dict[str, AccuracyCount]:
        """Test accuracies of a finished run; where the evaluation program counted one again, the run's own stays."""
        if self.status != "finished" or self.result is None or self.result.test is None:
            return {}
        counts = {n: c for part in reversed(self.evaluations.values()) for n, c in part.accuracies().items()}
        return {**counts, **self.result.test.by_name(self.result.attack)}

    def evaluation_by(self, metric: str) -> tuple[Evaluation, AttackResult] | None:
        """Returns the evaluation that a robust accuracy comes from, and its result; None where none has it."""
        name = metric.removeprefix(ROBUST)
        return next(((part, found) for part in self.evaluations.values() if (found := part.attack(name))), None)

    @property
    def validation_accuracy(self) -> float | None:
        """Best robust validation accuracy so far: what a search selects by. None for a failed run."""
        return self.history[-1].best_robust_accuracy if self.history and self.status != "failed" else None

    @property
    def attack(self) -> str | None:
        """Name of the validation attack, such as "pgd10"."""
        return self.history[-1].attack if self.history else None

    def config(self) -> dict[str, Any]:
        """Returns the run's effective config as nested dicts; empty where it has none."""
        if self.folder is None or not (self.folder / "config.yaml").is_file():
            return {}
        return yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8")) or {}


@dataclass(frozen=True)
class StudyResults:
    """A study and its runs so far, finished or not."""

    record: StudyRecord
    arms: tuple[ArmRecord, ...]
    """Those of the record; `reference` is None where there is nothing to compare an arm with."""
    runs: tuple[StudyRun, ...]

    def arm(self, arm_id: str) -> ArmRecord:
        """Returns the arm of an id."""
        return next(arm for arm in self.arms if arm.id == arm_id)

    def of(self, arm: str, phase: str) -> list[StudyRun]:
        """Returns the runs of an arm in one phase ("search" or "final"), by seed."""
        return sorted((run for run in self.runs if (run.arm, run.phase) == (arm, phase)), key=lambda run: run.seed)

    def final(self) -> list[StudyRun]:
        """Returns the final runs of all arms, by arm and seed."""
        return [run for arm in self.arms for run in self.of(arm.id, "final")]

    def evaluated(self, arm: str | None = None) -> list[StudyRun]:
        """Returns the finished final runs of an arm that have test accuracies, by seed; None: of all arms."""
        return [run for run in self.final() if run.counts and arm in (None, run.arm)]

    def accuracies(self, arm: str, metric: str) -> dict[int, AccuracyCount]:
        """Returns {seed: counts} of one test accuracy of an arm, only for seeds that have it."""
        return {run.seed: run.counts[metric] for run in self.evaluated(arm) if metric in run.counts}

    @property
    def metrics(self) -> list[str]:
        """Test accuracies in the order of the paper: natural, the runs' attack, AutoAttack, then any other.

        Where none was evaluated by AutoAttack but by its first two attacks, these are in its place.
        """
        found = {name: None for run in self.runs if run.phase == "final" for name in run.counts}
        attack = next((run.attack for run in self.runs if run.attack), "pgd10")
        strongest = APGD if APGD in found and AUTOATTACK not in found else AUTOATTACK
        return list(dict.fromkeys([NATURAL, ROBUST + attack, strongest, *sorted(found)]))

    @property
    def references(self) -> list[str]:
        """Ids of the arms that others are compared with, in the order of the arms."""
        named = {arm.reference for arm in self.arms}
        return [arm.id for arm in self.arms if arm.id in named]


def load_study(folder: Path) -> StudyResults:
    """Reads a study folder, finished or not.

    Raises:
        UserError: when study.json is missing, a file is no JSON, or a run belongs to no arm.
    """
    record = parsed(folder / "study.json", study_from_json)
    if record is None:
        raise UserError(f"{folder} has no study.json: give the folder of a study, such as HOME/studies/NAME.")
    planned = parsed(folder / "runs.json", runs_from_json) or []
    ids = {arm.id for arm in record.arms}
    strangers = sorted({run.arm for run in planned} - ids)
    if strangers:
        raise UserError(
            f'{folder / "runs.json"} names "{strangers[0]}", which is no arm of study.json. Restore the two files, or '
            "start the study again under another --name."
        )
    others = [arm.reference or record.reference for arm in record.arms]
    references = [other if other in ids - {arm.id} else None for arm, other in zip(record.arms, others, strict=True)]
    arms = tuple(replace(arm, reference=other) for arm, other in zip(record.arms, references, strict=True))
    runs = tuple(_run(folder, run, record.attack_images) for run in planned)
    return StudyResults(record, arms, runs)


def _run(folder: Path, planned: PlannedRun, attack_images: int | None) -> StudyRun:
    known = vars(planned) | ({"status": "failed"} if planned.status == "diverged" else {})
    if planned.run is None:
        return StudyRun(**known)
    home = folder / "runs" / planned.run
    history = parsed(home / "history.json", history_from_json) or []
    result = parsed(home / "result.json", partial(from_json, RunResult))
    # On as many images as the study asked for, then on all.
    subset = [] if attack_images is None else [home / f"evaluation-{attack_images}-images"]
    return StudyRun(
        **known,
        folder=home,
        history=history,
        result=result,
        masking=(result and result.masking) or masking_summary(history),
        evaluations={file: found for part in (*subset, home / "evaluation") for file, found in _in_folder(part)},
    )


def _in_folder(folder: Path) -> list[tuple[Path, Evaluation]]:
    """Returns the evaluations that count of those that a folder keeps, the newest first.

    None is of other images or limits than the oldest, the study's own, and each has an accuracy that no newer one has.
    """
    kept = sorted(folder.glob("evaluation-*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    files = [file for file in (folder / "evaluation.json", *kept) if file.is_file()]
    read = [(file, found) for file in files if (found := parsed(file, partial(from_json, Evaluation)))]
    counting: list[tuple[Path, Evaluation]] = []
    known: set[str] = set()
    for file, evaluation in read:
        accuracies = set(evaluation.accuracies())
        if _question(evaluation) == _question(read[-1][1]) and not accuracies <= known:
            known |= accuracies
            counting.append((file.with_name(f"{file.stem.replace('evaluation', 'outcomes')}.parquet"), evaluation))
    return counting


def _question(evaluation: Evaluation) -> tuple[object, ...]:
    """What comparable evaluations have in common; the seed chooses a subset."""
    seed = evaluation.seed if evaluation.is_subset else None
    images = evaluation.data_digest, evaluation.test_images, evaluation.image_size, seed
    return evaluation.model_digest, evaluation.norm, evaluation.epsilon, *images


def parsed(file: Path, parse: Callable[[Any, str], Parsed], advice: str = _ADVICE) -> Parsed | None:
    """Returns the parsed content of a JSON file, None where there is none.

    Raises:
        UserError: when it cannot be read; the message ends with `advice`.
    """
    try:
        values = read_json(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}). {advice}") from None
    return parse(values, str(file))


def metric_label(metric: str) -> str:
    """Returns an accuracy's name in text: "natural", "PGD-10", "AutoAttack"."""
    names = {
        NATURAL: "natural",
        AUTOATTACK: "AutoAttack",
        APGD: "APGD-CE + APGD-T",
        f"{ROBUST}{WORST_CASE}": "worst case",
    }
    return names.get(metric) or attack_label(metric.removeprefix(ROBUST))
