"""The training function on Ray Train's workers. They import all that it needs at the same time, before it runs."""

import hashlib
import logging
import shutil
import socket
import tempfile
import traceback
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.core.fast_attack.tf32 import tf32_off
from distributed_autolora.errors import TrainingDivergedError, UserError, first_line
from distributed_autolora.models.own_backbone import OWN
from distributed_autolora.orchestration.runs.step_file import step_writer
from distributed_autolora.training.checkpoint import TrainingState
from distributed_autolora.training.loop import FitResult, fit
from distributed_autolora.training.memory_estimate import advice, check_fits
from distributed_autolora.training.task_data import TaskData, fill_cache

_log = logging.getLogger(__name__)


class RayReporter:
    """Sends records to Ray Train, and checkpoints from the first worker."""

    def __init__(self, run: str) -> None:
        self._prefix = f"distributed_autolora-{hashlib.sha256(run.encode()).hexdigest()[:16]}-"

    def latest(self) -> TrainingState | None:
        """Returns the newest registered checkpoint."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return TrainingState.load(Path(folder))

    def is_machine_leaving(self) -> bool:
        """Tells whether a node of this run is about to be preempted; a barrier over the workers."""
        return ray.train.get_preemption_info() is not None

    def report(self, state: TrainingState) -> None:
        """Reports the last record's numbers, and the checkpoint with all records; a barrier over the workers."""
        metrics: dict[str, float] = {}  # what Ray's tables and schedulers can use
        for last in state.history[-1:]:
            robust, best = last.robust.accuracy, last.best_robust_accuracy
            metrics = {**last.metrics(), "val/robust_accuracy": robust, "best_val/robust_accuracy": best}
        metrics |= {"epoch": len(state.history), "step": state.step}
        if ray.train.get_context().get_world_rank() > 0:
            ray.train.report(metrics, checkpoint=None)
            return
        for left_behind in Path(tempfile.gettempdir()).glob(f"{self._prefix}*"):  # by a worker that was killed
            shutil.rmtree(left_behind, ignore_errors=True)
        within = f"_step_{state.step:06d}" if state.step else ""
        with tempfile.TemporaryDirectory(prefix=self._prefix) as folder:
            state.save(Path(folder))
            ray.train.report(
                metrics,
                checkpoint=Checkpoint.from_directory(folder),
                checkpoint_dir_name=f"checkpoint_{len(state.history):06d}{within}",
            )


def fill_node_cache(payload: dict[str, Any]) -> None:
    """Fills the node's image cache, before the workers' group has a timeout."""
    fill_cache(ExperimentConfig.from_dict(payload["config"]), payload["data_folder"])


def train_worker(payload: dict[str, Any]) -> dict[str, Any] | None:
    """Runs one worker; the first returns the result.

    A diverged loss is the same on every worker: it is returned, not raised.
    """
    config = ExperimentConfig.from_dict(payload["config"])
    own = payload.get("own_backbone")
    if own is not None:
        OWN[config.model.backbone] = own
    torch.set_num_threads(config.scaling.cpus_per_worker)
    tf32_off()  # attacks and steps turn it on for themselves
    device = ray.train.torch.get_device()
    try:
        _log.info("Opening the data.")
        data = TaskData(config, payload["data_folder"], device)
        if device.type == "cuda" and own is None:
            _, _, *size = data.plain_batch(data.split.train[:1])[0].shape
            check_fits(config, (size[0], size[1]), torch.cuda.mem_get_info(device)[0])
        reporter, on_step = RayReporter(payload["run"]), step_writer(Path(payload["run"]))
        with _system_metrics(payload):
            result = fit(config, data, payload["weights"], reporter, device=device, on_step=on_step)
    except TrainingDivergedError as error:
        return {"diverged": str(error)}
    except UserError:
        raise
    except torch.OutOfMemoryError as error:
        raise UserError(f"A worker ran out of memory: {first_line(error)} {advice(config)}") from error
    except Exception as error:
        # Ray hands the error on without its traceback.
        error.add_note(f"On worker {ray.train.get_context().get_world_rank()}:\n{traceback.format_exc()}")
        raise
    if ray.train.get_context().get_world_rank() > 0:
        return None
    return packed(result, data)


def _system_metrics(payload: dict[str, Any]) -> AbstractContextManager[None]:
    """Returns what logs the system metrics of the node, in one of its workers, if the run asks workers for them."""
    context, tracking = ray.train.get_context(), payload.get("system_metrics")
    if tracking is None or context.get_local_rank() > 0:
        return nullcontext()
    from distributed_autolora.orchestration.mlflow_tracking import system_metrics

    is_alone = context.get_local_world_size() == context.get_world_size()
    return system_metrics(**tracking, node=None if is_alone else socket.gethostname())


def packed(result: FitResult, data: TaskData) -> dict[str, Any]:
    """Returns what `results.finish` takes, without tensors of a device."""
    weights = {name: value.cpu().numpy() for name, value in result.weights.items()}
    row_ids = None if result.outcomes is None else data.test_row_ids
    return {**vars(result), "weights": weights, "row_ids": row_ids}
