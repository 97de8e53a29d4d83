"""A study from plan to report: search, final runs, evaluations; an interrupted one is continued."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from distributed_autolora.config import ExperimentConfig, RunConfig
from distributed_autolora.console import print_line
from distributed_autolora.errors import RunFailedError, UserError
from distributed_autolora.orchestration import mlflow_tracking
from distributed_autolora.orchestration.cluster.processes import uninterrupted
from distributed_autolora.orchestration.evaluations.evaluate import evaluate_run
from distributed_autolora.orchestration.evaluations.post_training import check_attacks
from distributed_autolora.orchestration.runs.names import with_precision
from distributed_autolora.orchestration.runs.preflight import check_inputs, find_inputs
from distributed_autolora.orchestration.studies.cluster import study_cluster
from distributed_autolora.orchestration.studies.folder import DONE, StudyFolder
from distributed_autolora.orchestration.studies.plan import batches, run_config
from distributed_autolora.orchestration.studies.progress import StudyProgress
from distributed_autolora.orchestration.studies.request import OWN_ATTACK, StudyRequest
from distributed_autolora.records import PlannedRun, StudyRecord, TrackedRun
from distributed_autolora.reporting.study.loading import load_study
from distributed_autolora.reporting.study.report import write_report
from distributed_autolora.reporting.study.text import mlflow_note
from distributed_autolora.studies import Study


def compare(request: StudyRequest) -> Path:
    """Makes all runs of a study that are not there yet, and returns the path of its report.

    Raises:
        UserError: for bad input, before any work starts wherever it can be known.
        RunFailedError: when runs failed; the others were made, and the report is written.
    """
    folder = StudyFolder(request.folder)
    request = replace(request, study=_checked(request, folder.asked(request)))
    folder.acquire()
    try:
        folder.describe(request)
        return StudyRunner(request, folder).make()
    finally:
        folder.release()


def _checked(request: StudyRequest, study: Study) -> Study:
    """Looks at the data and weights of every arm, and returns the study with their digests filled in."""
    arms = []
    seen: set[object] = set()
    check_attacks(request.attacks, find_inputs(study.arms[0].config)[1].data_folder, request.attack_images)
    for arm in study.arms:
        config, inputs = find_inputs(arm.config)
        if config.model.weights is None:
            raise UserError("A study compares ways of fine-tuning a pre-trained network: give its file with --weights.")
        key = (config.data, config.model, config.method.name)
        for warning in check_inputs(config, inputs) if key not in seen else ():
            if warning not in seen:
                print(f"warning: {warning}", file=sys.stderr)
            seen.add(warning)
        seen.add(key)
        arms.append(replace(arm, config=config))
    return replace(study, arms=tuple(arms))


class StudyRunner:
    """One attempt at a study, by the process that holds its folder.

    Args:
        request: what was asked for, with checked inputs.
        folder: the study's folder, held.
    """

    def __init__(self, request: StudyRequest, folder: StudyFolder) -> None:
        self._request, self._folder = request, folder
        self._study = request.study
        self._progress: StudyProgress | None = None
        self._not_evaluated: list[str] = []

    def make(self) -> Path:
        """Makes what is missing, in order: search, final runs, more attacks, report."""
        self._folder.plan(self._study, self._request.seeds)
        self._folder.save()
        self._mlflow = self._open_tracking()
        status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
        try:
            if self._missing() or self._request.attacks != OWN_ATTACK:
                with study_cluster(self._study.arms[0].config.scaling) as at_a_time:
                    self._work(at_a_time)
            report = self._report()
            status = "FAILED" if self._failed() or self._not_evaluated else "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            with uninterrupted():
                self._close_cut_off()
                mlflow_tracking.finish_run(**self._mlflow, status=status)
        self._raise_failures(report)
        return report

    def _record(self) -> StudyRecord:
        record = self._folder.record()
        assert record is not None, "study.json is written before the runs"
        return record

    def _missing(self) -> list[PlannedRun]:
        return [run for run in self._wanted() if run.status not in DONE]

    def _wanted(self) -> list[PlannedRun]:
        return [run for run in self._folder.runs if self._request.wants(run.arm)]

    def _open_tracking(self) -> dict[str, str]:
        """Opens the study's own MLflow run, the parent of all others, and remembers it in the study's folder."""
        record = self._record()
        default = mlflow_tracking.default_tracking_uri(self._request.home)
        uri = record.mlflow.uri if record.mlflow else self._request.mlflow_uri or default
        run_id = mlflow_tracking.open_run(
            uri=uri,
            experiment=RunConfig().mlflow_experiment,
            run_name=self._folder.name,
            params={
                "study": record.study,
                "task": record.task,
                "backbone": record.backbone,
                "epsilon": record.epsilon,
                "seeds": list(record.seeds),
                "scheduler": record.scheduler,
            },
            tags={"study": self._study.name, "task": record.task, "phase": "study"},
            run_id=record.mlflow.run_id if record.mlflow else None,
            home=self._request.home,
        )
        self._folder.write(replace(record, mlflow=TrackedRun(uri, run_id)))
        return {"uri": uri, "run_id": run_id}

    def _work(self, at_a_time: int) -> None:
        """Makes all missing runs on the connected cluster."""
        missing = self._missing()
        in_all = len(self._wanted())
        print_line(
            f'Study "{self._folder.name}": {in_all - len(missing)} of {in_all} runs are done, {at_a_time} at a time, '
            f"in {self._folder.path}"
        )
        self._progress = StudyProgress(in_all, in_all - len(missing), at_a_time)
        self._fix_precision()
        search = [run for run in self._wanted() if run.phase == "search"]
        self._run(search, at_a_time, early_stopping=self._request.scheduler == "asha")
        planned = self._folder.plan_final(self._study, self._request.seeds)
        final = [run for run in planned if run.run and self._request.wants(run.arm)]
        for batch in batches(final, by_seed=self._request.attacks != OWN_ATTACK):
            self._run(batch, at_a_time, early_stopping=False)
            names = {run.run for run in batch}
            finished = [run for run in self._folder.runs if run.run in names and run.status == "finished"]
            self._attack(finished, at_a_time)

    def _fix_precision(self) -> None:
        """Chooses the number format once for the whole study."""
        from distributed_autolora.orchestration.cluster.connection import hardware_precision

        record = self._record()
        precision = record.precision or hardware_precision(self._study.arms[0].config)
        self._folder.write(replace(record, precision=precision))
        arms = [replace(arm, config=with_precision(arm.config, precision)) for arm in self._study.arms]
        self._study = replace(self._study, arms=tuple(arms))

    def _run(self, runs: Sequence[PlannedRun], at_a_time: int, *, early_stopping: bool) -> None:
        """Makes those runs of a phase that are pending."""
        from distributed_autolora.orchestration.studies.tune_trials import Outcome, Trial, run_trials

        by_name = {str(run.run): run for run in runs if run.status == "pending"}

        def on_start(name: str) -> None:
            by_name[name] = self._folder.update(by_name[name], status="running")
            if self._progress is not None:
                self._progress.started(by_name[name])

        def on_end(name: str, outcome: Outcome) -> None:
            run = by_name[name] = self._folder.update(by_name[name], status=outcome.status, error=outcome.error)
            if outcome.status != "finished":
                self._close(run, "KILLED" if outcome.status == "stopped_early" else "FAILED")
            if self._progress is not None:
                self._progress.ended(run, self._folder.folder(run).history())

        run_trials(
            {name: Trial(self._config(run), self._tags(run)) for name, run in by_name.items()},
            at_a_time=at_a_time,
            early_stopping=early_stopping,
            folder=self._folder.path / "tune",
            on_start=on_start,
            on_end=on_end,
        )

    def _config(self, run: PlannedRun) -> ExperimentConfig:
        return run_config(self._study.arm(run.arm), run, output=str(self._folder.path), mlflow_uri=self._mlflow["uri"])

    def _tags(self, run: PlannedRun) -> dict[str, str]:
        return {
            "study": self._study.name,
            "arm": run.arm,
            "phase": run.phase,
            mlflow_tracking.PARENT: self._mlflow["run_id"],
            # The program that trains a study's runs is Ray's, which tells a reader nothing.
            "mlflow.source.name": "jobs/compare.py",
        }

    def _attack(self, runs: Sequence[PlannedRun], at_a_time: int) -> None:
        """Evaluates the final runs by more attacks, one run after another on all of the study's workers.

        A run that cannot be evaluated does not stop the others or the report.
        """
        if self._request.attacks == OWN_ATTACK:
            return
        scaling = self._study.arms[0].config.scaling
        for run in runs:
            try:
                evaluate_run(
                    self._folder.folder(run),
                    attacks=self._request.attacks,
                    num_workers=at_a_time * scaling.num_workers,
                    use_gpu=scaling.use_gpu,
                    images=self._request.attack_images,
                )
            except UserError as error:
                self._not_evaluated.append(f"{run.label} ({error})")

    def _report(self) -> Path:
        report = write_report(self._folder.path)
        try:
            mlflow_tracking.log_study(**self._mlflow, report=report, note=mlflow_note(load_study(self._folder.path)))
        except mlflow_tracking.TrackingError as error:
            print(f"warning: {error} {report.parent} holds the report.", file=sys.stderr)
        print(f"\nReport: {report}", flush=True)
        return report

    def _close_cut_off(self) -> None:
        """Marks interrupted runs as pending, and ends their MLflow runs."""
        for run in self._folder.runs:
            if run.status == "running":
                self._close(self._folder.update(run, status="pending"), "KILLED")
        self._folder.save()

    def _close(self, run: PlannedRun, status: Literal["FAILED", "KILLED"]) -> None:
        """Ends the MLflow run of a run whose process may be gone."""
        folder = self._folder.folder(run)
        if folder.exists() and "mlflow" in folder.read("run.json"):
            mlflow_tracking.finish_run(**folder.read("run.json")["mlflow"], status=status)

    def _failed(self) -> list[PlannedRun]:
        """Returns the runs that a number is missing for; a trial of a search may diverge, and only loses."""
        ended = [run for run in self._folder.runs if run.status in ("failed", "diverged")]
        return [run for run in ended if run.status == "failed" or run.phase == "final"]

    def _raise_failures(self, report: Path) -> None:
        failed = self._failed()
        if failed:
            raise RunFailedError(
                f"{len(failed)} of {len(self._folder.runs)} runs failed, the first is {failed[0].label} "
                f"({failed[0].error}). {report} says which; the same command tries them again."
            )
        if self._not_evaluated:
            raise RunFailedError(
                f"{len(self._not_evaluated)} final runs were not evaluated by {self._request.attacks}, the first is "
                f"{self._not_evaluated[0]}. The same command evaluates them."
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
