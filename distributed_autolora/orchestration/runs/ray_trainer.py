"""Training on a connected cluster, and what Ray Train's controller does with the workers' reports.

The controller imports this module before it can start any worker: nothing here imports what only workers need.
"""

import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayActorError
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    ControllerError,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
)
from ray.train.torch import TorchTrainer

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.errors import (
    RunFailedError,
    StorageError,
    TrainingDivergedError,
    UserError,
    first_line,
)
from distributed_autolora.files import write_text
from distributed_autolora.orchestration.cluster.rendezvous import NodeTorchConfig
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.orchestration.runs.ray_checkpoints import (
    copy_index,
    remove_unregistered,
    restore_index,
    skip_broken,
    sync_registered,
)
from distributed_autolora.records import history_from_json
from distributed_autolora.training.checkpoint_integrity import read_values

if TYPE_CHECKING:
    from distributed_autolora.orchestration.mlflow_tracking import MetricWriter

_TRACEBACK = "error.txt"
_ELASTIC_START_S = 15
# What PyTorch raises on the workers that are left when another one is gone, or when a device fails.
_LOST_CLASSES = ("DistError", "AcceleratorError")
_LOST_WORDS = re.compile(r"gloo|nccl|c10d|TCPStore|\bpeer\b|connection|cuda|cudnn|cublas|nvml", re.IGNORECASE)
# A label out of range, and a batch that is too large: both would come again.
_REPEATABLE_WORDS = re.compile(r"device-side assert|out of memory", re.IGNORECASE)


class ProgressCallback(UserCallback):  # type: ignore[misc]
    """Keeps the run's history file and its MLflow run up to date, from the controller."""

    def __init__(self, folder: Path, uri: str, run_id: str) -> None:
        self._folder = RunFolder(folder)
        self._tracking = (uri, run_id)
        self._writer: MetricWriter | None = None

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Writes the records of the checkpoint that was reported."""
        assert checkpoint is not None, "the first worker attaches one to every report"
        sync_registered(self._folder.path, Path(checkpoint.path))
        history = history_from_json(read_values(Path(checkpoint.path))["history"], checkpoint.path)
        self._folder.write_history(history)
        copy_index(self._folder.path)
        if self._writer is None:
            # Importing mlflow takes seconds, and the workers import this module too.
            from distributed_autolora.orchestration.mlflow_tracking import MetricWriter

            self._writer = MetricWriter(*self._tracking)
        self._writer.write(history)


def train_on_ray(
    config: ExperimentConfig, folder: RunFolder, payload: dict[str, Any], callbacks: Sequence[UserCallback]
) -> dict[str, Any]:
    """Trains on the connected cluster and returns what the first worker returned.

    Raises:
        UserError: for an error that only the user can change.
        RunFailedError: when workers were lost more often than allowed, or for a bug; the run's folder has the
            traceback.
        KeyboardInterrupt: on Ctrl-C, after the workers were stopped.
    """
    trainer = _trainer(config, folder, payload, callbacks)
    restore_index(folder.path)
    for warning in skip_broken(folder.path):
        print(f"warning: {warning}", file=sys.stderr)
    remove_unregistered(folder.path)
    # How long Ray Train waits for a worker that does not answer at all, such as one that the system has stopped, and
    # the others for one that does not come to report.
    silence = str(config.scaling.collective_timeout_s)
    os.environ |= {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": silence, "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": silence}
    if config.scaling.max_workers is not None:
        # Ray looks for dead nodes every 20 s: until then it tries to start as many workers as before.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_ELASTIC_START_S))
    on_sigint = signal.getsignal(signal.SIGINT)
    try:
        returned = trainer.fit().return_value
    except (TrainingFailedError, RayActorError) as error:
        raise _user_error_of(error, folder) from error
    except SystemExit:  # how Ray Train ends the process on Ctrl-C, after it has stopped its workers
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():  # a trial of a study runs in another
            signal.signal(signal.SIGINT, on_sigint)
    remove_unregistered(folder.path)
    (folder.path / _TRACEBACK).unlink(missing_ok=True)  # of an earlier failure
    if "diverged" in returned:
        raise TrainingDivergedError(returned["diverged"])
    return dict(returned)


def _trainer(
    config: ExperimentConfig, folder: RunFolder, payload: dict[str, Any], callbacks: Sequence[UserCallback]
) -> TorchTrainer:
    from distributed_autolora.orchestration.runs.ray_worker import fill_node_cache, train_worker

    scaling, most = config.scaling, config.scaling.max_workers
    start_s = 60 if most is None else _ELASTIC_START_S
    return TorchTrainer(
        train_worker,
        train_loop_config={**payload, "run": str(folder.path)},
        torch_config=NodeTorchConfig(timeout_s=int(scaling.collective_timeout_s), prepare=(fill_node_cache, payload)),
        scaling_config=ScalingConfig(
            num_workers=scaling.num_workers if most is None else (scaling.num_workers, most),
            elastic_resize_monitor_interval_s=scaling.resize_every_s,
            use_gpu=scaling.use_gpu,
            resources_per_worker={"CPU": scaling.cpus_per_worker} | ({"GPU": 1} if scaling.use_gpu else {}),
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(folder.path),
            failure_config=FailureConfig(
                max_failures=scaling.max_failures,
                # Ray would try for ever to start workers that the cluster has no room for, `start_s` at a time.
                controller_failure_limit=max(1, int(scaling.wait_for_resources_s // start_s)),
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=[*callbacks, RepeatableErrors()],
        ),
    )


class RepeatableErrors(UserCallback):  # type: ignore[misc]
    """Ends a run at once, instead of restarting its workers, for an error that would come again."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raises the first such error; Ray Train ends a run whose callback fails."""
        for error in worker_exceptions.values():
            if not may_be_cured_by_a_restart(error):
                raise error


def may_be_cured_by_a_restart(error: BaseException) -> bool:
    """Tells a lost process, connection, device or disk from an error of input or program, which would come again."""
    if isinstance(error, OSError | StorageError) or type(error).__module__.partition(".")[0] == "ray":
        return True
    if _REPEATABLE_WORDS.search(str(error)):
        return False
    is_lost = any(kind.__name__ in _LOST_CLASSES for kind in type(error).__mro__)
    return is_lost or (type(error) is RuntimeError and _LOST_WORDS.search(str(error)) is not None)


def _user_error_of(error: TrainingFailedError | RayActorError, folder: RunFolder) -> UserError:
    """Returns the user error that ended a run, or a `RunFailedError`, whose traceback goes into the run's folder."""
    rank: int | None = None
    cause: BaseException = error.controller_failure if isinstance(error, ControllerError) else error
    if failures := getattr(error, "worker_failures", None):
        rank, cause = min(failures.items(), key=lambda item: (may_be_cured_by_a_restart(item[1]), item[0]))
    if isinstance(cause, UserError):
        return cause
    write_text(folder.path / _TRACEBACK, "".join(traceback.format_exception(cause)))
    who = "controller" if cause is error else f"worker {rank}" if rank is not None else type(cause).__name__
    return RunFailedError(
        f"Training failed ({who}: {first_line(cause)}). The traceback is in {folder.path / _TRACEBACK}; the same "
        "command resumes from the last checkpoint."
    )
