"""A run, an evaluation and a study in this process: all but Ray's processes and MLflow is the program's own.

Each calls `slow_part` where what follows depends on the folder alone; a test ends it there if it knows the rest.
"""

import asyncio
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from sys import audit
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import torch
from ray.train import Checkpoint, CheckpointConfig
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext
from ray.train.v2._internal.execution.training_report import _TrainingReport
from safetensors import safe_open

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.orchestration import mlflow_tracking
from distributed_autolora.orchestration.cluster import connection
from distributed_autolora.orchestration.evaluations import evaluate as evaluating
from distributed_autolora.orchestration.evaluations.evaluate import evaluate
from distributed_autolora.orchestration.evaluations.worker import Evaluator
from distributed_autolora.orchestration.runs import ray_trainer, results, train
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.orchestration.studies import compare as comparing
from distributed_autolora.orchestration.studies import tune_trials
from distributed_autolora.orchestration.studies.compare import compare
from distributed_autolora.orchestration.studies.request import StudyRequest
from distributed_autolora.reporting.study.report import write_report
from distributed_autolora.studies import Arm, Study
from distributed_autolora.training.checkpoint import TrainingState
from distributed_autolora.training.loop import fit
from distributed_autolora.training.task_data import TaskData
from tests.crash_points.recording import MARK, UNFINISHED
from tests.orchestration.evaluations.shared import Material
from tests.reporting import runs
from tests.training.tasks import SIZE, small_config

SlowPart = Callable[[], None]


@dataclass
class SerialTrainer:
    """Trains in this process, with the classes of Ray Train that keep checkpoints."""

    slow_part: SlowPart
    config: ExperimentConfig
    folder: RunFolder
    payload: dict[str, Any]
    callbacks: Sequence[Any]

    def fit(self) -> Any:
        self.storage = StorageContext(str(self.folder.path), "train")
        self.index = CheckpointManager(CheckpointConfig(num_to_keep=2), self.storage)
        data = TaskData(self.config, self.payload["data_folder"], torch.device("cpu"))
        self.slow_part()
        result = fit(self.config, data, None, self)
        returned = {name: getattr(result, name) for name in ("summary", "history", "samples", "outcomes")}
        weights = {name: value.numpy() for name, value in result.weights.items()}
        return SimpleNamespace(return_value={**returned, "weights": weights, "row_ids": data.test_row_ids})

    def latest(self) -> TrainingState | None:
        newest = self.index.latest_checkpoint_result
        return None if newest is None else TrainingState.load(Path(newest.checkpoint.path))

    def report(self, state: TrainingState) -> None:
        name = f"checkpoint_{len(state.history):06d}" + (f"_step_{state.step:06d}" if state.step else "")
        with tempfile.TemporaryDirectory() as folder:
            state.save(Path(folder))
            kept = self.storage.persist_current_checkpoint(Checkpoint.from_directory(folder), name)
        audit(MARK)
        metrics: dict[str, Any] = {"epoch": len(state.history), "step": state.step}
        asyncio.run(self._register(kept, metrics))
        audit(MARK)
        for callback in self.callbacks:
            callback.after_report(None, [metrics], kept)

    async def _register(self, checkpoint: Checkpoint, metrics: dict[str, Any]) -> None:
        self.index.register_checkpoint(_TrainingReport(checkpoint, metrics, validation=False))

    def is_machine_leaving(self) -> bool:
        return False


@contextmanager
def _without_tracking() -> Iterator[ExitStack]:
    """MLflow's rows are left out: SQLite and the server keep them whole themselves."""
    with ExitStack() as stack:
        for name, value in (("open_run", "an-id"), ("finish_run", None), ("log_evaluation", None), ("log_study", None)):
            stack.enter_context(mock.patch.object(mlflow_tracking, name, return_value=value))
        stack.enter_context(mock.patch.object(mlflow_tracking, "MetricWriter"))
        stack.enter_context(mock.patch.object(results, "track", return_value=True))
        yield stack


def run(home: Path, task: str, slow_part: SlowPart) -> None:
    """Trains 2 epochs of 2 steps with a checkpoint after each step, and images from the cache."""
    config = small_config(task, epochs=2, global_batch_size=16)
    scaling = replace(config.scaling, check_finite_every=1, checkpoint_every_s=0.0, cache=str(home / "cache"))
    data = replace(config.data, image_size=SIZE, val_images_min=9)
    config = replace(config, scaling=scaling, data=data, run=replace(config.run, output=str(home), name="mine"))

    def trainer(*values: Any) -> SerialTrainer:
        return SerialTrainer(slow_part, *values)

    with _without_tracking() as stack:
        stack.enter_context(mock.patch.object(train, "_connect"))
        stack.enter_context(mock.patch.object(ray_trainer, "_trainer", trainer))
        train.train_run(config, checked=True)


def run_outcome(home: Path) -> Any:
    """Returns weights, records and result of a run, without times."""
    folder = home / "runs" / "mine"
    run_folder = RunFolder(folder)
    result = replace(run_folder.result(), cost=None)  # type: ignore[arg-type]
    table = pq.read_table(folder / "outcomes.parquet").to_pydict()
    newest = TrainingState.load(max((folder / "train").glob("checkpoint_*/")))
    last = {name: value.numpy().tobytes() for name, value in [*newest.model.items(), *newest.momentum.items()]}
    with safe_open(folder / "model.safetensors", "numpy") as file:
        weights = file.metadata(), {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    records = runs.without_times(run_folder.history())
    return result, weights, records, runs.without_times(newest.history), last, table, _names(folder)


@dataclass
class _SerialPool:
    slow_part: SlowPart
    evaluator: Evaluator

    def run(self, calls: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        self.slow_part()
        for call in calls:
            yield call, getattr(self.evaluator, call.method)(*call.arguments)


def evaluation(home: Path, material: Material, slow_part: SlowPart) -> None:
    """Evaluates 8 images in 4 chunks by two attacks."""
    home.mkdir(exist_ok=True)

    def pool(plan: Any, calls: int) -> _SerialPool:
        return _SerialPool(slow_part, Evaluator(plan.task, torch.device("cpu")))

    with _without_tracking() as stack:
        stack.enter_context(mock.patch.object(evaluating, "_connected_pool", pool))
        evaluate(material.request(home / "evaluation", attacks="fgsm,pgd2x2", images=8, chunk_size=2))


def evaluation_outcome(home: Path) -> Any:
    """Returns result and outcomes of an evaluation, without times."""
    values = json.loads((home / "evaluation" / "evaluation.json").read_text())
    kept = {key: value for key, value in values.items() if "seconds" not in key}
    return kept, pq.read_table(home / "evaluation" / "outcomes.parquet").to_pydict(), _names(home)


def study(home: Path, task: str, slow_part: SlowPart) -> None:
    """Searches two learning rates, makes the final runs on two seeds, and reports; the runs are made up."""
    home.mkdir(exist_ok=True)
    config = small_config(task, epochs=4)
    weights = str(Path(task).parent / "model.safetensors")
    config = replace(config, model=replace(config.model, weights=weights))
    arms = (
        Arm(id="autolora", label="AutoLoRa", config=config),
        Arm(id="lr", label="searched", config=config, grid={"optimization.lr": (0.05, 0.01)}),
    )
    asked = Study(name="crashing", title="Crashing", paper_tables=(), arms=arms, reference="autolora")

    @contextmanager
    def cluster(scaling: Any) -> Iterator[int]:
        yield 1

    def report(folder: Path) -> Path:
        slow_part()
        return write_report(folder)

    with _without_tracking() as stack:
        stack.enter_context(mock.patch.object(comparing, "study_cluster", cluster))
        stack.enter_context(mock.patch.object(connection, "hardware_precision", return_value="float32"))
        stack.enter_context(mock.patch.object(tune_trials, "run_trials", _made_up(home, slow_part)))
        stack.enter_context(mock.patch.object(comparing, "write_report", report))
        compare(StudyRequest(study=asked, name="crashing", home=home, seeds=(0, 1)))


def _made_up(home: Path, slow_part: SlowPart) -> Callable[..., None]:
    def run_trials(trials: Any, *, folder: Path, on_start: Any, on_end: Any, **_: Any) -> None:
        slow_part()
        for name, (config, _tags) in trials.items():
            on_start(name)
            made = RunFolder(folder.parent / "runs" / name)
            made.acquire()
            made.create(config)
            history = runs.history(3 if config.optimization.lr < 0.05 else 4)
            made.write_history(history[:2])
            made.write_history(history)
            result = replace(runs.result(history, linear_head=False), name=name, folder=str(made.path))
            made.write_result(replace(result, method="autolora", seed=config.seed))
            made.release()
            on_end(name, "finished", None)

    return run_trials


def study_outcome(home: Path) -> Any:
    """Returns records, planned runs and the text of the report of a study."""
    folder = home / "studies" / "crashing"
    texts = {
        path.name: path.read_text() for path in sorted(folder.rglob("*")) if path.suffix in (".json", ".md", ".csv")
    }
    return texts, _names(home)


def _names(root: Path) -> set[str]:
    """Returns all paths; without unfinished files where nobody holds a lock: of finished runs, and of reports."""
    paths = {str(path.relative_to(root)) for path in root.rglob("*")}
    return {path for path in paths if not UNFINISHED.fullmatch(path.rpartition("report/")[2] or "")} - {
        ".result.json.1"
    }
