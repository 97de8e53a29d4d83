"""The runs of a study as trials of Ray Tune: how many run at a time, which are stopped early, how each ends.

A trial is a driver process on the head node that launches a training run of its own. The run folder continues it, so
Tune restores nothing.
"""

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.errors import TrainingDivergedError, UserError
from distributed_autolora.orchestration.runs.train import train_run
from distributed_autolora.records import RunStatus

Trial = tuple[ExperimentConfig, dict[str, str]]
"""Config of a run, and the tags of its MLflow run."""
_SCORE, _EPOCH, _OUTCOME, _ERROR = "best_robust_accuracy", "epoch", "outcome", "error"
_REDUCTION = 3
_LONGEST_WAIT_S = 8 * 3600.0
# A whole CPU for a driver would leave none for its workers; the head node has one of these.
_DRIVER = {"node:__internal_head__": 0.001}

# Tune's own handling of Ctrl-C waits for trials; its tables, result files and check of metrics are not needed here.
_TUNE_SETTINGS = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class ScoreReport(TuneReportCallback):  # type: ignore[misc]
    """Reports the validation score to Ray Tune after every epoch, so that the scheduler can stop the trial."""

    _epochs = 0

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Reports the epoch and the best robust validation accuracy; not for a checkpoint within an epoch."""
        epochs = metrics[0]["epoch"]
        if epochs == self._epochs:
            return
        self._epochs = epochs
        super().after_report(run_context, [{_EPOCH: epochs, _SCORE: metrics[0]["best_val/robust_accuracy"]}], None)


def run_trials(
    trials: Mapping[str, Trial],
    *,
    at_a_time: int,
    early_stopping: bool,
    folder: Path,
    on_start: Callable[[str], None],
    on_end: Callable[[str, RunStatus, str | None], None],
) -> None:
    """Makes all runs on the connected cluster; one that fails does not end the others.

    Args:
        trials: by run name, in the order in which they are started.
        early_stopping: stop runs that are worse than others after as many epochs (ASHA).
        folder: absolute; for Tune's own files, deleted at the end.
        on_end: takes the name of a run, its status, and its error if any.

    Raises:
        KeyboardInterrupt: on Ctrl-C; the caller stops the cluster or leaves it, and with it the trials.
    """
    if not trials:
        return
    os.environ.update(_TUNE_SETTINGS)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    shutil.rmtree(folder, ignore_errors=True)
    epochs = max(config.optimization.epochs for config, _ in trials.values())
    tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, trials=dict(trials), reports=early_stopping), _DRIVER),
        param_space={"run": tune.grid_search(list(trials))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=at_a_time,
            scheduler=_scheduler(epochs) if early_stopping else None,
            # A stopped trial leaves its process in the middle of its work.
            reuse_actors=not early_stopping,
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            verbose=0,
            # A driver that is lost is started once more, and its run resumes from its checkpoint.
            failure_config=tune.FailureConfig(max_failures=1),
            callbacks=[_Observer(on_start, on_end)],
        ),
    ).fit()
    shutil.rmtree(folder, ignore_errors=True)


def _scheduler(epochs: int) -> TrialScheduler:
    return ASHAScheduler(
        time_attr=_EPOCH,
        metric=_SCORE,
        mode="max",
        # Tune stops a trial that reaches max_t, and ours have a result to write after their last epoch.
        max_t=epochs + 1,
        grace_period=max(1, epochs // _REDUCTION**2),
        reduction_factor=_REDUCTION,
    )


def _trial(point: dict[str, Any], trials: dict[str, Trial], *, reports: bool) -> dict[str, Any]:
    """Makes one run; a user's mistake is an outcome, anything else an error of the trial."""
    config, tags = trials[point["run"]]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # One run fitted when the study began. Where nodes were lost since, a trial waits for the others to end.
    config = replace(config, scaling=replace(config.scaling, wait_for_resources_s=_LONGEST_WAIT_S))
    try:
        train_run(config, checked=True, tags=tags, callbacks=[ScoreReport()] if reports else [])
    except TrainingDivergedError as error:
        return {_OUTCOME: "diverged", _ERROR: str(error)}
    except UserError as error:
        return {_OUTCOME: "failed", _ERROR: str(error)}
    return {_OUTCOME: "finished", _ERROR: None}


@dataclass(eq=False)
class _Observer(tune.Callback):  # type: ignore[misc]
    """Calls back when trials start and end."""

    on_start: Callable[[str], None]
    on_end: Callable[[str, RunStatus, str | None], None]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Reports that a driver was started."""
        self.on_start(trial.config["run"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Reports what a trial returned; one that returned nothing was stopped by the scheduler."""
        result = trial.last_result or {}
        self.on_end(trial.config["run"], result.get(_OUTCOME, "stopped_early"), result.get(_ERROR))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Reports that a trial's driver was lost twice, or raised an unexpected error."""
        error = trial.get_error()
        lines = str(error).strip().splitlines() or [type(error).__name__]
        self.on_end(trial.config["run"], "failed", lines[-1].strip())
