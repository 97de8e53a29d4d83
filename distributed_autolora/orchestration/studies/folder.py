"""The folder of a study: what is compared, the state of each run, and a lock."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from distributed_autolora.config import DataConfig
from distributed_autolora.data.parquet.reader import read_texts
from distributed_autolora.errors import UserError
from distributed_autolora.files import acquire_folder, read_json, write_json
from distributed_autolora.orchestration.runs.folder import RunFolder, check_writable
from distributed_autolora.orchestration.runs.preflight import EMBEDDED
from distributed_autolora.orchestration.studies.plan import best_trial, plan_final, plan_search, validation_score
from distributed_autolora.orchestration.studies.request import OWN_ATTACK, StudyRequest
from distributed_autolora.records import (
    ArmRecord,
    PlannedRun,
    Settings,
    StudyRecord,
    runs_from_json,
    runs_to_json,
    study_from_json,
    study_to_json,
)
from distributed_autolora.studies import Study

DONE = ("finished", "diverged", "stopped_early")
"""Status of runs that need no work any more."""
_SAME = ("study", "task", "epsilon", "search_seed", "scheduler")
"""What a continued study must have as it was begun, beside its arms; seeds and arms may be added."""


class StudyFolder:
    """One study on disk.

    Args:
        path: absolute folder.

    Attributes:
        path: the folder.
        runs: all runs of the study so far planned, in their order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: list[PlannedRun] = []
        self._lock: IO[str] | None = None

    @property
    def name(self) -> str:
        """Name of the study's folder."""
        return self.path.name

    def acquire(self) -> None:
        """Claims the study for this process until it ends.

        Raises:
            UserError: when another live process holds it, or the folder cannot be written.
        """
        check_writable(self.path, flag="--output")
        self._lock = acquire_folder(
            self.path, what=f'Study "{self.name}"', otherwise="give another --name", elsewhere="--output"
        )

    def release(self) -> None:
        """Gives the study back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def record(self) -> StudyRecord | None:
        """Returns the content of study.json; None for a new study.

        Raises:
            UserError: when it cannot be read.
        """
        values = self._read("study.json")
        return None if values is None else study_from_json(values, str(self.path / "study.json"))

    def write(self, record: StudyRecord) -> None:
        """Writes study.json."""
        write_json(self.path / "study.json", study_to_json(record))

    def asked(self, request: StudyRequest) -> Study:
        """Returns the study with the arms alone that this request or an earlier one asks for."""
        record = self.record()
        known = {arm.id for arm in record.arms} if record else set()
        arms = [arm for arm in request.study.arms if arm.id in known or request.wants(arm.id)]
        return replace(request.study, arms=tuple(arms))

    def describe(self, request: StudyRequest) -> None:
        """Writes study.json of a study that is begun or continued; its arms name their data and weights by digest.

        Raises:
            UserError: when runs of the study were begun with other settings.
        """
        before, record = self.record(), study_record(request)
        other = None if before is None else _difference(before, record)
        if before is None or (other and not any((self.path / "runs").glob("*"))):  # refused before its first run
            self.write(record)
            return
        if other:
            raise UserError(
                f'Study "{self.name}" was begun with other {other}. Give another --name, or the same flags.'
            )
        dropped = [seed for seed in before.seeds if seed not in record.seeds]
        if any(run.phase == "final" and run.seed in dropped for run in self._begun()):
            raise UserError(
                f'Study "{self.name}" has runs on {len(before.seeds)} seeds, and its report includes all: give '
                f"--seeds {len(before.seeds)} or more, or another --name."
            )
        images = before.attack_images if request.attacks == OWN_ATTACK else record.attack_images
        commands = tuple(dict.fromkeys([*before.commands, *record.commands]))
        kept = replace(record, precision=before.precision, mlflow=before.mlflow)
        self.write(replace(kept, commands=commands, attack_images=images))

    def _begun(self) -> list[PlannedRun]:
        """Returns the runs of runs.json that have a folder."""
        return [run for run in self._saved_runs() if run.run and self.folder(run).exists()]

    def plan(self, study: Study, seeds: Sequence[int]) -> None:
        """Plans all runs anew, and gives them the status that they have on disk; writes nothing.

        Failed and interrupted runs are pending again, diverged ones are not. While a search is not complete, the final
        runs of its arm have no settings and no name.

        Args:
            study: the study.
            seeds: seeds of the final runs; the search uses the first.
        """
        search = self._known(plan_search(study, seeds[0]))
        self.runs = search
        incomplete = {run.arm for run in search if run.status not in DONE}
        best = {arm: settings for arm, settings in self.best_settings(study).items() if arm not in incomplete}
        self.runs = [*search, *self._known(plan_final(study, seeds, best))]

    def plan_final(self, study: Study, seeds: Sequence[int]) -> list[PlannedRun]:
        """Plans the final runs anew, now that searches are over; an arm without a finished trial fails."""
        search = [run for run in self.runs if run.phase == "search"]
        waiting = {run.arm for run in search if run.status == "pending"}
        final = [
            replace(run, status="failed", error="no trial of its search has finished")
            if run.run is None and run.arm not in waiting
            else run
            for run in self._known(plan_final(study, seeds, self.best_settings(study)))
        ]
        self.runs = [*search, *final]
        self.save()
        return final

    def _known(self, runs: list[PlannedRun]) -> list[PlannedRun]:
        """Returns the runs with the status that they have on disk."""
        saved = {run.run: run for run in self._saved_runs()}
        known = []
        for run in runs:
            before = saved.get(run.run)
            if run.run is not None and self.folder(run).is_finished():
                known.append(replace(run, status="finished"))
            elif before is not None and before.status in ("diverged", "stopped_early"):
                known.append(replace(run, status=before.status, error=before.error))
            else:
                known.append(run)
        return known

    def save(self) -> None:
        """Writes runs.json."""
        write_json(self.path / "runs.json", runs_to_json(self.runs))

    def update(self, run: PlannedRun, **changes: Any) -> PlannedRun:
        """Changes a planned run that has a name, and returns it; writes runs.json."""
        changed = replace(run, **changes)
        self.runs = [changed if one.run == run.run else one for one in self.runs]
        self.save()
        return changed

    def folder(self, run: PlannedRun) -> RunFolder:
        """Returns the folder of a run that has a name."""
        return RunFolder(self.path / "runs" / str(run.run))

    def best_settings(self, study: Study) -> dict[str, Settings]:
        """Returns the settings of the best trial of every searched arm that has one."""
        found = {}
        for arm in study.arms:
            runs = [run for run in self.runs if (run.arm, run.phase) == (arm.id, "search")]
            best = best_trial([(run, validation_score(self.folder(run).history())) for run in runs])
            if best is not None:
                found[arm.id] = best
        return found

    def _saved_runs(self) -> list[PlannedRun]:
        values = self._read("runs.json")
        return [] if values is None else runs_from_json(values, str(self.path / "runs.json"))

    def _read(self, name: str) -> Any:
        """Returns the content of one of the folder's JSON files, None where there is none."""
        file = self.path / name
        try:
            return read_json(file) if file.is_file() else None
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read ({error}). Restore the file, or give another --name.") from None


def study_record(request: StudyRequest) -> StudyRecord:
    """Returns what study.json holds of a new study."""
    study = request.study
    first = study.arms[0].config
    return StudyRecord(
        study=study.name,
        title=study.title,
        task=first.data.task,
        images=_own_images(first.data),
        paper_tables=study.paper_tables,
        backbone=first.model.backbone,
        pretraining=_pretraining(study),
        epsilon=first.threat_model.epsilon,
        seeds=request.seeds,
        search_seed=request.seeds[0],
        scheduler=request.scheduler,
        reference=study.reference,
        arms=tuple(
            ArmRecord(
                id=arm.id,
                label=arm.label,
                grid=dict(arm.grid),
                reference=arm.reference,
                config_digest=hashlib.sha256(arm.config.digest().encode()).hexdigest()[:16],
            )
            for arm in study.arms
        ),
        attack_images=None if request.attacks == OWN_ATTACK else request.attack_images,
        commands=(request.command,) if request.command else (),
    )


def _difference(before: StudyRecord, record: StudyRecord) -> str | None:
    """Returns the first thing that a continued study must not change and does; None: nothing."""
    for key in _SAME:
        if getattr(before, key) != getattr(record, key):
            return f"{key}: {getattr(before, key)} there, {getattr(record, key)} here"
    arms = {arm.id: arm for arm in record.arms}
    for arm in before.arms:
        now = arms.get(arm.id)
        if now is None or (now.grid, now.reference) != (arm.grid, arm.reference):
            return f"arms or grid ({arm.id})"
        if now.config_digest != arm.config_digest:
            return f"values in the config of arm {arm.id}"
    return None


def _own_images(data: DataConfig) -> str | None:
    """Returns the name in the files of images from elsewhere, where that is not the task's name."""
    name = None if data.path is None else str(read_texts(data.path, "train").get("task", ""))
    return name if name not in ("", data.task) else None


def _pretraining(study: Study) -> str:
    weights = {arm.config.model.weights for arm in study.arms}
    if len(weights) > 1:
        return "by arm"
    return "the shipped backbone" if weights == {EMBEDDED} else str(weights.pop())
