"""Training in this process, without Ray: for notebooks and debuggers; the numbers are those of one worker."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.core.fast_attack.tf32 import tf32_off
from distributed_autolora.files import writing
from distributed_autolora.orchestration.mlflow_tracking import MetricWriter
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.orchestration.runs.ray_worker import packed
from distributed_autolora.orchestration.runs.step_file import step_writer
from distributed_autolora.training.checkpoint import TrainingState
from distributed_autolora.training.loop import fit
from distributed_autolora.training.reporter import Reporter
from distributed_autolora.training.task_data import TaskData


class FolderReporter(Reporter):
    """Keeps records, MLflow metrics and the newest checkpoint of a run of this process."""

    def __init__(self, folder: RunFolder, tracking: dict[str, str]) -> None:
        self._folder, self._place = folder, folder.path / "in_process"
        self._writer = MetricWriter(tracking["uri"], tracking["run_id"])

    def latest(self) -> TrainingState | None:
        """Returns the newest checkpoint."""
        places = [place for place in (self._place, self._next) if (place / "state.json").is_file()]
        return TrainingState.load(places[0]) if places else None

    @property
    def _next(self) -> Path:
        return self._place.with_name("in_process.new")

    def report(self, state: TrainingState) -> None:
        """Writes a checkpoint beside the older one and replaces it, then the records."""
        with writing(self._next):
            shutil.rmtree(self._next, ignore_errors=True)
            self._next.mkdir()
            state.save(self._next)
            shutil.rmtree(self._place, ignore_errors=True)
            self._next.rename(self._place)
        self._folder.write_history(state.history)
        self._writer.write(state.history)


def train_in_process(
    config: ExperimentConfig, folder: RunFolder, payload: dict[str, Any], tracking: dict[str, str]
) -> dict[str, Any]:
    """Trains in this process, resuming from its own last checkpoint, and returns what Ray's first worker would.

    Raises:
        UserError: as `training.loop.fit`.
    """
    tf32_off()  # attacks and steps turn it on for themselves
    device = torch.device("cuda" if config.scaling.use_gpu else "cpu")
    data = TaskData(config, payload["data_folder"], device)
    reporter, on_step = FolderReporter(folder, tracking), step_writer(folder.path)
    result = fit(config, data, payload["weights"], reporter, device=device, on_step=on_step)
    shutil.rmtree(folder.path / "in_process", ignore_errors=True)
    return packed(result, data)
