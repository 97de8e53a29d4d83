"""A run on 1 to 2 workers whose node is killed for good, and another joins; compared with a run without Ray."""

import random
import subprocess
import time
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from distributed_autolora import __version__
from distributed_autolora.config import ExperimentConfig
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.training.checkpoint import TrainingState
from tests.chaos.rounds import ELASTIC, NEW_NODE, FaultyRun, Round
from tests.hosts.comparing import Verdict, run_folder, tracked
from tests.reporting.runs import without_times
from tests.training.gloo import run_workers
from tests.training.tasks import changed, fitted, small_config, write_task
from tests.training.test_resume import FolderReporter, StoppedError

_NEVER_S = 1e9
_MOVES = (([2], "node, for good"), ([1], NEW_NODE))
"""What happens to a node, and the number of workers of the epoch before it."""
_LONGEST_S, _EVERY_S, _EPOCHS = 900.0, 0.05, 40


def elastic(folder: Path) -> ExperimentConfig:
    """Returns the config of a run on 1 to 2 workers, and writes its task.

    It takes longer than a node's start. Checkpoints are written after epochs only: an epoch has one number of workers.
    """
    return changed(
        small_config(write_task(folder, train=900), epochs=_EPOCHS, global_batch_size=32),
        optimization={"batch_norm": "shards", "batch_norm_shards": 2},
        schedule={"name": "step_decay"},  # it does not stop early
        scaling={"num_workers": 1, "max_workers": 2, "resize_every_s": 5.0, "check_finite_every": 1}
        | {"checkpoint_every_s": _NEVER_S, "collective_timeout_s": 20.0, "max_failures": 1000},
    )


def nodes_come_and_go(folder: Path, chance: random.Random) -> Round:
    """Makes a run in a folder of short path, and compares it with the same epochs on as many workers without Ray."""
    config, home, began = elastic(folder / "task"), folder / "home", time.monotonic()
    faulty = _ElasticRun(config, home, ELASTIC, config.scaling.num_workers, _NEVER_S)
    try:
        has_ended = faulty.supervise(chance, len(_MOVES))
        verdicts = [faulty.orphans(), faulty.unregistered()] if has_ended else []
    finally:
        faulty.close()
    if has_ended:
        verdicts = [*_compare(config, home), *verdicts]
    verdicts.append(
        Verdict("the run ends, and its driver is started once", faulty.statuses == [0], str(faulty.statuses))
    )
    seen = [verdict._asdict() for verdict in verdicts]
    return Round(ELASTIC, 2, __version__, time.monotonic() - began, faulty.kills, faulty.statuses, seen)


class _ElasticRun(FaultyRun):
    def _disturb_start(self, chance: random.Random, driver: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        return driver

    def _strike(self, chance: random.Random, driver: subprocess.Popen[bytes]) -> None:
        workers, move = _MOVES[len(self.kills)]
        deadline = time.monotonic() + _LONGEST_S
        while [one.num_workers for one in RunFolder(run_folder(self.home)).history()][-1:] != workers:
            if driver.poll() is not None or time.monotonic() > deadline:
                return
            time.sleep(_EVERY_S)
        assert self.nodes is not None
        if move == NEW_NODE:
            self.nodes.bring_back(2)
        else:
            time.sleep(chance.uniform(0.0, 2.0))
            self.nodes.take_away(2)
        self._note(move, "any time")


def _compare(config: ExperimentConfig, home: Path) -> list[Verdict]:
    run = run_folder(home)
    history, own = RunFolder(run).history(), tracked(home)
    parts = [(workers, len(list(epochs))) for workers, epochs in groupby(one.num_workers for one in history)]
    found = TrainingState.load(max((run / "train").glob("checkpoint_0*")))
    expected = replay(config, home.parent / "replayed", parts)
    tensors, others = _tensors(found), _tensors(expected)
    different = [name for name in tensors if not torch.equal(tensors[name], others[name])]
    records = [(one, other) for one, other in zip(*map(without_times, (found.history, expected.history)), strict=True)]
    changed_epochs = [epoch for epoch, (one, other) in enumerate(records, 1) if one != other]
    steps = own["steps twice"] == 0 and own["further runs"] == 0 and own["is finished"]
    return [
        Verdict("workers follow the nodes", [n for n, _ in parts] == [2, 1, 2], f"workers, epochs: {parts}"),
        Verdict("last checkpoint, bit for bit", not different, f"{len(tensors)} tensors, {len(different)} differ"),
        Verdict("history but for times and rates", not changed_epochs, f"epochs that differ: {changed_epochs}"),
        Verdict("MLflow: one run, every step of every metric once", steps, f"{len(own)} entries"),
    ]


def _tensors(state: TrainingState) -> dict[str, Tensor]:
    return {
        f"{part} {name}": one for part in ("model", "best", "momentum") for name, one in getattr(state, part).items()
    }


def replay(config: ExperimentConfig, folder: Path, parts: list[tuple[int, int]]) -> TrainingState:
    """Returns the last checkpoint of a run without Ray: for each part so many workers train so many epochs."""
    done = 0
    for workers, epochs in parts:
        done += epochs
        run_workers(_part, workers, config, str(folder), done)
    return TrainingState.load(max(folder.iterdir()))


def _part(config: ExperimentConfig, folder: str, epochs: int) -> None:
    try:
        fitted(config, FolderReporter(Path(folder), (epochs, 0)))
    except StoppedError:
        return
