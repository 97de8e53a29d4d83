"""The folder of a study: what was asked, what became of each run, and a lock."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from distributed_autolora.config import DataConfig
from distributed_autolora.data.parquet.reader import read_texts
from distributed_autolora.errors import UserError
from distributed_autolora.files.folder_lock import acquire_folder
from distributed_autolora.files.json_files import read_json, write_json
from distributed_autolora.orchestration.runs.folder import RunFolder, check_writable
from distributed_autolora.orchestration.runs.preflight import EMBEDDED
from distributed_autolora.orchestration.studies.plan import (
    PlannedRun,
    best_trial,
    plan_final,
    plan_search,
    validation_score,
)
from distributed_autolora.orchestration.studies.request import OWN_ATTACK, StudyRequest
from distributed_autolora.studies import Settings, Study

DONE = ("finished", "diverged", "stopped_early")
"""Status of runs that need no work any more."""

_SAME = ("study", "task", "epsilon", "search_seed", "scheduler", "arms", "arm_digests")
"""What a continued study must have as it was begun; seeds may be added."""


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

    def description(self) -> dict[str, Any]:
        """Returns study.json; empty for a new study.

        Raises:
            UserError: when it cannot be read.
        """
        return dict(self._read("study.json") or {})

    def describe(self, description: dict[str, Any]) -> None:
        """Writes study.json.

        Raises:
            UserError: when runs of the study were begun with other settings.
        """
        before = self.description()
        other = [key for key in _SAME if before and _plain(before.get(key)) != _plain(description.get(key))]
        if other and not any((self.path / "runs").glob("*")):  # it was refused before its first run
            before, other = {}, []
        for key in other:
            shown = "" if key in ("arms", "arm_digests") else f": {before.get(key)} there, {description[key]} here"
            what = {"arms": "arms or grid", "arm_digests": "values in an arm's config"}.get(key, key)
            raise UserError(
                f'Study "{self.name}" was begun with other {what}{shown}. Give another --name, or the same flags.'
            )
        dropped = [seed for seed in before.get("seeds", []) if seed not in description["seeds"]]
        if dropped and any(entry["phase"] == "final" and entry["seed"] in dropped for entry in self._begun()):
            raise UserError(
                f'Study "{self.name}" has runs on {len(before["seeds"])} seeds, and a report tells of all: give '
                f"--seeds {len(before['seeds'])} or more, or another --name."
            )
        commands = _commands(before, description)
        write_json(self.path / "study.json", {**before, **description, "commands": commands})

    def _begun(self) -> list[dict[str, Any]]:
        """Returns the entries of runs.json that have a folder."""
        entries = self._read("runs.json") or []
        return [entry for entry in entries if entry["run"] and RunFolder(self.path / "runs" / entry["run"]).exists()]

    def plan(self, study: Study, seeds: Sequence[int]) -> None:
        """Plans all runs anew, and gives them the status that they have on disk; writes nothing.

        What failed or was cut off is to be done again, but not what diverged. While a search is not complete, the final
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
        """Plans the final runs anew, now that searches are over; an arm that was searched in vain fails."""
        search = [run for run in self.runs if run.phase == "search"]
        final = self._known(plan_final(study, seeds, self.best_settings(study)))
        waiting = {run.arm for run in search if run.status == "pending"}
        for run in final:
            if run.run is None and run.arm not in waiting:
                run.status, run.error = "failed", "no trial of its search has finished"
        self.runs = [*search, *final]
        self.save()
        return final

    def _known(self, runs: list[PlannedRun]) -> list[PlannedRun]:
        """Sets what is on disk already."""
        known = {entry["run"]: entry for entry in self._read("runs.json") or []}
        for run in runs:
            if run.run is not None and self.folder(run).is_finished():
                run.status = "finished"
            elif run.run in known and known[run.run]["status"] in ("diverged", "stopped_early"):
                run.status, run.error = known[run.run]["status"], known[run.run]["error"]
        return runs

    def save(self) -> None:
        """Writes runs.json."""
        write_json(self.path / "runs.json", [asdict(run) for run in self.runs])

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

    def _read(self, name: str) -> Any:
        """Returns the content of one of the folder's JSON files, None where there is none."""
        file = self.path / name
        try:
            return read_json(file) if file.is_file() else None
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read ({error}). Restore the file, or give another --name.") from None


def describe_study(request: StudyRequest) -> dict[str, Any]:
    """Returns what study.json holds of a study whose arms name their data and weights by digest."""
    study = request.study
    first = study.arms[0].config
    return {
        "study": study.name,
        "task": first.data.task,
        **_own_images(first.data),
        "title": study.title,
        "paper_tables": list(study.paper_tables),
        "backbone": first.model.backbone,
        "pretraining": _pretraining(study),
        "seeds": list(request.seeds),
        "search_seed": request.seeds[0],
        "scheduler": request.scheduler,
        "epsilon": first.threat_model.epsilon,
        "command": request.command,
        # A report made without another judgement still tells of the last one.
        **({} if request.attacks == OWN_ATTACK else {"attack_images": request.attack_images}),
        "reference": study.reference,
        "arms": [
            {
                "id": arm.id,
                "label": arm.label,
                "grid": {key: list(values) for key, values in arm.grid.items()},
                **({"reference": arm.reference} if arm.reference else {}),
            }
            for arm in study.arms
        ],
        "arm_digests": {arm.id: hashlib.sha256(arm.config.digest().encode()).hexdigest()[:16] for arm in study.arms},
    }


def _commands(before: dict[str, Any], description: dict[str, Any]) -> list[str]:
    """Returns all distinct commands typed for a study, in order; an older study.json holds the last one alone."""
    typed = [*(before.get("commands") or [before.get("command")]), description.get("command")]
    return list(dict.fromkeys(command for command in typed if command))


def _own_images(data: DataConfig) -> dict[str, str]:
    """Returns what images from elsewhere call themselves, where that is not the task's name."""
    name = "" if data.path is None else str(read_texts(data.path, "train").get("task", ""))
    return {"images": name} if name not in ("", data.task) else {}


def _pretraining(study: Study) -> str:
    weights = {arm.config.model.weights for arm in study.arms}
    if len(weights) > 1:
        return "by arm"
    return "the shipped backbone" if weights == {EMBEDDED} else str(weights.pop())


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
