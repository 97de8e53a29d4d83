"""A study from plan to report: search, final runs, evaluations; an interrupted one is continued."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from distributed_autolora.config import ExperimentConfig, RunConfig
from distributed_autolora.console import command, print_line
from distributed_autolora.errors import RunFailedError, UserError
from distributed_autolora.orchestration import mlflow_tracking
from distributed_autolora.orchestration.cluster.processes import uninterrupted
from distributed_autolora.orchestration.evaluations.evaluate import evaluate_run
from distributed_autolora.orchestration.evaluations.post_training import check_attacks
from distributed_autolora.orchestration.runs.names import with_precision
from distributed_autolora.orchestration.runs.preflight import find_inputs
from distributed_autolora.orchestration.studies.cluster import study_cluster
from distributed_autolora.orchestration.studies.folder import DONE, StudyFolder
from distributed_autolora.orchestration.studies.plan import batches, checked_study, run_config
from distributed_autolora.orchestration.studies.progress import StudyProgress
from distributed_autolora.orchestration.studies.request import OWN_ATTACK, StudyRequest
from distributed_autolora.records import PlannedRun, RunStatus, StudyRecord, TrackedRun
from distributed_autolora.reporting.study.loading import load_study
from distributed_autolora.reporting.study.report import write_report
from distributed_autolora.reporting.study.text import mlflow_note


def compare(request: StudyRequest) -> Path:
    """Makes all runs of a study that are not there yet, and returns the path of its report.

    Raises:
        UserError: for bad input, before any work starts wherever it can be known.
        RunFailedError: when runs failed; the others were made, and the report is written.
    """
    folder = StudyFolder(request.folder)
    study = folder.asked(request)
    check_attacks(request.attacks, find_inputs(study.arms[0].config)[1].data_folder, request.attack_images)
    request = replace(request, study=checked_study(study))
    folder.acquire()
    try:
        return _StudyRunner(request, folder, folder.describe(request)).make()
    finally:
        folder.release()


@dataclass
class _StudyRunner:
    """One attempt at a study, by the process that holds its folder."""

    request: StudyRequest
    """With checked inputs."""
    folder: StudyFolder
    record: StudyRecord
    mlflow: dict[str, str] = field(init=False)
    """Tracking URI and id of the study's own MLflow run."""
    at_a_time: int = field(init=False)
    progress: StudyProgress = field(init=False)
    not_evaluated: list[str] = field(default_factory=list)

    def make(self) -> Path:
        """Makes what is missing, in order: search, final runs, more attacks, report."""
        self.folder.plan(self.request.study, self.request.seeds)
        self.folder.save()
        self._open_tracking()
        status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
        try:
            if self._missing() or self.request.attacks != OWN_ATTACK:
                with study_cluster(self.request.study.arms[0].config.scaling) as self.at_a_time:
                    self._work()
            report = self._report()
            status = "FAILED" if self._failed() or self.not_evaluated else "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            with uninterrupted():
                self._close_cut_off()
                mlflow_tracking.finish_run(**self.mlflow, status=status)
        self._raise_failures(report)
        return report

    def _describe(self, **changes: Any) -> None:
        self.record = replace(self.record, **changes)
        self.folder.write(self.record)

    def _missing(self) -> list[PlannedRun]:
        return [run for run in self._wanted() if run.status not in DONE]

    def _wanted(self) -> list[PlannedRun]:
        return [run for run in self.folder.runs if self.request.wants(run.arm)]

    def _open_tracking(self) -> None:
        """Opens the study's own MLflow run, the parent of all others, and remembers it in the study's folder."""
        record = self.record
        default = mlflow_tracking.default_tracking_uri(self.request.home)
        uri = record.mlflow.uri if record.mlflow else self.request.mlflow_uri or default
        parameters = ("study", "task", "backbone", "norm", "epsilon", "seeds", "scheduler")
        run_id = mlflow_tracking.open_run(
            uri=uri,
            experiment=RunConfig().mlflow_experiment,
            run_name=self.folder.name,
            params={name: getattr(record, name) for name in parameters} | {"seeds": list(record.seeds)},
            tags={"study": record.study, "task": record.task, "phase": "study"},
            run_id=record.mlflow.run_id if record.mlflow else None,
            home=self.request.home,
        )
        self._describe(mlflow=TrackedRun(uri, run_id))
        self.mlflow = {"uri": uri, "run_id": run_id}

    def _work(self) -> None:
        in_all = len(self._wanted())
        done = in_all - len(self._missing())
        print_line(
            f'Study "{self.folder.name}": {done} of {in_all} runs are done, {self.at_a_time} at a time, '
            f"in {self.folder.path}"
        )
        self.progress = StudyProgress(in_all, done, self.at_a_time)
        self._fix_precision()
        search = [run for run in self._wanted() if run.phase == "search"]
        self._run(search, early_stopping=self.request.scheduler == "asha")
        planned = self.folder.plan_final(self.request.study, self.request.seeds)
        final = [run for run in planned if run.run and self.request.wants(run.arm)]
        for batch in batches(final, by_seed=self.request.attacks != OWN_ATTACK):
            self._run(batch, early_stopping=False)
            names = {run.run for run in batch}
            self._attack([run for run in self.folder.runs if run.run in names and run.status == "finished"])

    def _fix_precision(self) -> None:
        from distributed_autolora.orchestration.cluster.connection import hardware_precision

        study = self.request.study
        precision = self.record.precision or hardware_precision(study.arms[0].config)
        self._describe(precision=precision)
        arms = [replace(arm, config=with_precision(arm.config, precision)) for arm in study.arms]
        self.request = replace(self.request, study=replace(study, arms=tuple(arms)))

    def _run(self, runs: Sequence[PlannedRun], *, early_stopping: bool) -> None:
        from distributed_autolora.orchestration.studies.tune_trials import run_trials

        by_name = {str(run.run): run for run in runs if run.status == "pending"}

        def on_start(name: str) -> None:
            by_name[name] = self.folder.update(by_name[name], status="running")
            self.progress.started(by_name[name])

        def on_end(name: str, status: RunStatus, error: str | None) -> None:
            run = by_name[name] = self.folder.update(by_name[name], status=status, error=error)
            if status != "finished":
                self._close(run, "KILLED" if status == "stopped_early" else "FAILED")
            self.progress.ended(run, self.folder.folder(run).history())

        run_trials(
            {name: self._trial(run) for name, run in by_name.items()},
            at_a_time=self.at_a_time,
            early_stopping=early_stopping,
            folder=self.folder.path / "tune",
            on_start=on_start,
            on_end=on_end,
        )

    def _trial(self, run: PlannedRun) -> tuple[ExperimentConfig, dict[str, str]]:
        arm = self.request.study.arm(run.arm)
        tags = {
            "study": self.request.study.name,
            "arm": run.arm,
            "phase": run.phase,
            mlflow_tracking.PARENT: self.mlflow["run_id"],
            # The program that trains a study's runs is Ray's, which tells a reader nothing.
            "mlflow.source.name": command("compare"),
        }
        return run_config(arm, run, output=str(self.folder.path), mlflow_uri=self.mlflow["uri"]), tags

    def _attack(self, runs: Sequence[PlannedRun]) -> None:
        """Evaluates final runs by more attacks, one after another on all workers; one that fails stops no other."""
        if self.request.attacks == OWN_ATTACK:
            return
        scaling = self.request.study.arms[0].config.scaling
        for run in runs:
            try:
                evaluate_run(
                    self.folder.folder(run),
                    attacks=self.request.attacks,
                    num_workers=self.at_a_time * scaling.num_workers,
                    use_gpu=scaling.use_gpu,
                    images=self.request.attack_images,
                )
            except UserError as error:
                self.not_evaluated.append(f"{run.label} ({error})")

    def _report(self) -> Path:
        report = write_report(self.folder.path)
        try:
            mlflow_tracking.log_study(**self.mlflow, report=report, note=mlflow_note(load_study(self.folder.path)))
        except mlflow_tracking.TrackingError as error:
            print(f"warning: {error} {report.parent} holds the report.", file=sys.stderr)
        print(f"\nReport: {report}", flush=True)
        return report

    def _close_cut_off(self) -> None:
        """Marks interrupted runs as pending, and ends their MLflow runs."""
        for run in self.folder.runs:
            if run.status == "running":
                self._close(self.folder.update(run, status="pending"), "KILLED")
        self.folder.save()

    def _close(self, run: PlannedRun, status: Literal["FAILED", "KILLED"]) -> None:
        """Ends the MLflow run of a run whose process may be gone."""
        folder = self.folder.folder(run)
        if folder.exists() and "mlflow" in folder.read("run.json"):
            mlflow_tracking.finish_run(**folder.read("run.json")["mlflow"], status=status)

    def _failed(self) -> list[PlannedRun]:
        """Returns the runs that a number is missing for; a trial of a search may diverge."""
        without_number = {("search", "failed"), ("final", "failed"), ("final", "diverged")}
        return [run for run in self.folder.runs if (run.phase, run.status) in without_number]

    def _raise_failures(self, report: Path) -> None:
        failed = self._failed()
        if failed:
            raise RunFailedError(
                f"{len(failed)} of {len(self.folder.runs)} runs failed, the first is {failed[0].label} "
                f"({failed[0].error}). {report} says which; the same command tries them again."
            )
        if self.not_evaluated:
            raise RunFailedError(
                f"{len(self.not_evaluated)} final runs were not evaluated by {self.request.attacks}, the first is "
                f"{self.not_evaluated[0]}. The same command evaluates them."
            )


def report_only(home: Path, name: str) -> Path:
    """Writes the report of a study anew from what its folder holds, and returns its path.

    Raises:
        UserError: when there is no such study.
    """
    folder = home / "studies" / name
    if not (folder / "study.json").is_file():
        raise UserError(f"There is no study {folder}. Start it with the same command without --report-only.")
    report = write_report(folder)
    print(f"Report: {report}", flush=True)
    return report
