"""The training function on Ray Train's workers, and what the controller does with their reports."""

from __future__ import annotations

import json
import logging
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
import ray.train.torch
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
)
from ray.train.torch import TorchConfig, TorchTrainer

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.errors import RunFailedError, TrainingDivergedError, UserError
from distributed_autolora.orchestration.run_folder import RunFolder, write_json, write_text
from distributed_autolora.orchestration.snapshot import copy_snapshot, mend_snapshot

if TYPE_CHECKING:
    from distributed_autolora.orchestration.mlflow_tracking import MetricWriter
    from distributed_autolora.training.checkpoint import TrainingState

_log = logging.getLogger(__name__)


class RayReporter:
    """Sends records to Ray Train, and checkpoints from the first worker."""

    def latest(self) -> TrainingState | None:
        """Returns the newest registered checkpoint."""
        # Ray Train's controller imports this module too, and nothing starts before it; torchvision takes seconds.
        from distributed_autolora.training.checkpoint import TrainingState

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return TrainingState.load(Path(folder))

    def report(self, history: list[dict[str, Any]], write: Callable[[Path], None]) -> None:
        """Reports all records so far; a barrier over the workers."""
        metrics = {"epoch": len(history), "history": json.dumps(history)}
        if ray.train.get_context().get_world_rank() > 0:
            ray.train.report(metrics, checkpoint=None)
            return
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            ray.train.report(
                metrics,
                checkpoint=Checkpoint.from_directory(folder),
                checkpoint_dir_name=f"checkpoint_{len(history):06d}",
            )


class ProgressCallback(UserCallback):  # type: ignore[misc]
    """Keeps the run's history file and its MLflow run up to date, from the controller.

    Args:
        folder: the run's folder.
        uri: absolute MLflow tracking URI.
        run_id: the MLflow run to write to.
    """

    def __init__(self, folder: Path, uri: str, run_id: str) -> None:
        self._history_file = RunFolder(folder).history_file
        self._tracking = (uri, run_id)
        self._writer: MetricWriter | None = None

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Writes what the report brings."""
        history = json.loads(metrics[0]["history"])
        write_json(self._history_file, history)
        copy_snapshot(self._history_file.parent)
        if self._writer is None:
            # Importing mlflow takes seconds, and the workers import this module too.
            from distributed_autolora.orchestration.mlflow_tracking import MetricWriter

            self._writer = MetricWriter(*self._tracking)
        self._writer.write(history)


def train_worker(payload: dict[str, Any]) -> dict[str, Any] | None:
    """Runs one worker; the first returns the result.

    A diverged loss is the same on every worker and would be so again: it is returned, not raised, so
    that the group is not restarted for it.
    """
    _log.info("Importing what trains.")
    import torch

    from distributed_autolora.core.float32 import exact_float32
    from distributed_autolora.training.loop import fit
    from distributed_autolora.training.task_data import TaskData

    config = ExperimentConfig.from_dict(payload["config"])
    torch.set_num_threads(config.scaling.cpus_per_worker)
    exact_float32()  # what is judged; attacks and steps lift it for themselves
    device = ray.train.torch.get_device()
    _log.info("Opening the data.")
    data = TaskData(config, payload["data_folder"], device)
    try:
        result = fit(config, data, payload["weights"], RayReporter(), device=device)
    except TrainingDivergedError as error:
        return {"diverged": str(error)}
    if ray.train.get_context().get_world_rank() > 0:
        return None
    weights = {name: value.cpu().numpy() for name, value in result.weights.items()}
    return {
        "summary": result.summary,
        "history": result.history,
        "weights": weights,
        "samples": result.samples,
        "outcomes": result.outcomes,
        "row_ids": None if result.outcomes is None else data.test_row_ids,
    }


def train_on_ray(
    config: ExperimentConfig, folder: RunFolder, payload: dict[str, Any], callbacks: Sequence[UserCallback]
) -> dict[str, Any]:
    """Trains on the connected cluster and returns what the first worker returned.

    Raises:
        UserError: for an error that only the user can change.
        RunFailedError: when workers were lost more often than allowed, or for a defect; the whole story is in the
            run's folder.
        KeyboardInterrupt: on Ctrl-C, after the workers were stopped.
    """
    scaling = config.scaling
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=payload,
        torch_config=TorchConfig(timeout_s=int(scaling.collective_timeout_s)),
        scaling_config=ScalingConfig(
            num_workers=scaling.num_workers,
            use_gpu=scaling.use_gpu,
            resources_per_worker={"CPU": scaling.cpus_per_worker} | ({"GPU": 1} if scaling.use_gpu else {}),
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(folder.path),
            failure_config=FailureConfig(
                max_failures=scaling.max_failures,
                # Ray would try for ever to start workers that the cluster has no room for, one minute at a time.
                controller_failure_limit=max(1, int(scaling.wait_for_resources_s // 60)),
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=list(callbacks),
        ),
    )
    mend_snapshot(folder.path)
    on_sigint = signal.getsignal(signal.SIGINT)
    try:
        returned = trainer.fit().return_value
    except TrainingFailedError as error:
        raise _for_people(error, folder) from error
    except SystemExit:  # how Ray Train ends the process on Ctrl-C, after it has stopped its workers
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():  # a trial of a study runs in another
            signal.signal(signal.SIGINT, on_sigint)
    if "diverged" in returned:
        raise TrainingDivergedError(returned["diverged"])
    return dict(returned)


def _for_people(error: TrainingFailedError, folder: RunFolder) -> UserError:
    """Returns the user error that a worker died of, or what is to be said of a failed run."""
    failures = getattr(error, "worker_failures", None) or {-1: error}
    for cause in failures.values():
        if isinstance(cause, UserError):
            return cause
    write_text(folder.path / "error.txt", "".join(traceback.format_exception(error)))
    rank, cause = next(iter(failures.items()))
    what = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    who = f"worker {rank}" if rank >= 0 else type(error).__name__
    return RunFailedError(
        f"Training failed ({who}: {what}). Everything is in {folder.path / 'error.txt'}; the same command goes on "
        "from the last finished epoch."
    )
