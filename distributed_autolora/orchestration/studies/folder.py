"""The folder of a study: what is compared, the state of each run, and a lock."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from distributed_autolora.errors import UserError
from distributed_autolora.files import acquire_folder, write_json
from distributed_autolora.orchestration.runs.folder import RunFolder, check_writable
from distributed_autolora.orchestration.studies.plan import best_trial, plan_final, plan_search, study_record
from distributed_autolora.orchestration.studies.request import OWN_ATTACK, StudyRequest
from distributed_autolora.records import (
    PlannedRun,
    Settings,
    StudyRecord,
    runs_from_json,
    runs_to_json,
    study_from_json,
    to_json,
)
from distributed_autolora.reporting.study.loading import parsed
from distributed_autolora.studies import Study

DONE = ("finished", "diverged", "stopped_early")
"""Status of runs that need no work any more."""
_ADVICE = "Restore the file, or give another --name."
_SAME = ("study", "task", "norm", "epsilon", "search_seed", "scheduler")
"""What a continued study must have as it was begun, beside its arms; seeds and arms may be added."""


@dataclass
class StudyFolder:
    """One study on disk."""

    path: Path
    """Absolute."""
    runs: list[PlannedRun] = field(default_factory=list)
    """Those that are planned so far, in their order."""
    _lock: IO[str] | None = None

    @property
    def name(self) -> str:
        """Name of the study's folder."""
        return self.path.name

    def acquire(self) -> None:
        """Claims the study for this process until it ends.

        Raises:
            UserError: when another live process holds it, or the folder cannot be written.
        """
        check_writable(self.path)
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
        return parsed(self.path / "study.json", study_from_json, _ADVICE)

    def write(self, record: StudyRecord) -> None:
        """Writes study.json."""
        write_json(self.path / "study.json", to_json(record))

    def asked(self, request: StudyRequest) -> Study:
        """Returns the study with the arms alone that this request or an earlier one asks for."""
        record = self.record()
        known = {arm.id for arm in record.arms} if record else set()
        arms = [arm for arm in request.study.arms if arm.id in known or request.wants(arm.id)]
        return replace(request.study, arms=tuple(arms))

    def describe(self, request: StudyRequest) -> StudyRecord:
        """Writes and returns study.json of a study that is begun or continued; arms name data and weights by digest.

        Raises:
            UserError: when runs of the study were begun with other settings.
        """
        before, record = self.record(), study_record(request)
        other = None if before is None else _difference(before, record)
        if before is None or (other and not any((self.path / "runs").glob("[!.]*"))):  # refused before its first run
            self.write(record)
            return record
        if other:
            raise UserError(
                f'Study "{self.name}" was begun with other {other}. Give another --name, or the same flags.'
            )
        dropped = set(before.seeds) - set(record.seeds)
        final = [run for run in self._saved_runs() if run.phase == "final" and run.seed in dropped]
        if any(run.run and self.folder(run).exists() for run in final):
            raise UserError(
                f'Study "{self.name}" has runs on {len(before.seeds)} seeds, and its report includes all: give '
                f"--seeds {len(before.seeds)} or more, or another --name."
            )
        images = before.attack_images if request.attacks == OWN_ATTACK else record.attack_images
        commands = tuple(dict.fromkeys([*before.commands, *record.commands]))
        kept = replace(record, precision=before.precision, mlflow=before.mlflow)
        continued = replace(kept, commands=commands, attack_images=images)
        self.write(continued)
        return continued

    def plan(self, study: Study, seeds: Sequence[int]) -> None:
        """Plans all runs anew, and gives them the status that they have on disk; writes nothing.

        Failed and interrupted runs are pending again, diverged ones are not. While a search is not complete, the final
        runs of its arm have no settings and no name. The search uses the first seed.
        """
        self.runs = search = self._known(plan_search(study, seeds[0]))
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
        ended = {run.run: run for run in self._saved_runs() if run.status in ("diverged", "stopped_early")}
        known = []
        for run in runs:
            if run.run is not None and self.folder(run).is_finished():
                known.append(replace(run, status="finished"))
            else:
                before = ended.get(run.run, run)
                known.append(replace(run, status=before.status, error=before.error))
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
        trials: dict[str, list[tuple[PlannedRun, float | None]]] = {arm.id: [] for arm in study.arms}
        for run in self.runs:
            if run.phase == "search":
                history = self.folder(run).history()
                trials[run.arm].append((run, history[-1].best_robust_accuracy if history else None))
        return {arm: best for arm, runs in trials.items() if (best := best_trial(runs)) is not None}

    def _saved_runs(self) -> list[PlannedRun]:
        return parsed(self.path / "runs.json", runs_from_json, _ADVICE) or []


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
