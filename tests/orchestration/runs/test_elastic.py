"""A run whose number of workers follows the nodes: a node that goes costs some steps, one that comes is used."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.config.experiment import config_text
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.training.checkpoint import TrainingState
from tests.chaos.nodes import Nodes
from tests.programs import ROOT, environment, wait_for
from tests.training.gloo import run_workers
from tests.training.tasks import changed, fitted, small_config, trainer_of, write_task
from tests.training.test_resume import FolderReporter

EPOCHS = 16
BOUND = 1e-2
"""Largest distance between the weights, of how far the undisturbed run moved them."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ela") as path:
        yield Path(path)


def elastic(task: str) -> ExperimentConfig:
    """Returns the config of a run on 1 to 2 workers.

    Its training images are perturbed by noise alone, and its steps are small: one worker rounds otherwise than two, and
    the signs of gradients and large steps would enlarge that.
    """
    return changed(
        small_config(task, epochs=EPOCHS, global_batch_size=32),
        optimization={"batch_norm": "shards", "batch_norm_shards": 2, "lr": 0.001, "momentum": 0.0},
        train_attack={"num_steps": 0},
        schedule={"name": "step_decay", "min_lr": 1e-6},
        scaling={"num_workers": 1, "max_workers": 2, "resize_every_s": 5.0, "check_finite_every": 1}
        | {"checkpoint_every_s": 1.0, "collective_timeout_s": 20.0},
    )


def undisturbed(task: str, folder: str) -> None:
    fitted(changed(elastic(task), scaling={"checkpoint_every_s": 1e9}), FolderReporter(Path(folder)))


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.double().flatten() for _, value in sorted(weights.items()) if value.is_floating_point()])


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_node_goes_the_run_continues_alone_another_comes_and_is_used_and_the_weights_are_those_of_an_undisturbed_run(
    folder: Path,
) -> None:
    task = write_task(folder / "task", train=900)
    (folder / "config.yaml").write_text(config_text(elastic(task)))
    home = environment(folder / "home", RAY_AUTH_MODE="disabled")
    run = RunFolder(folder / "home" / "runs" / "mine")
    nodes = Nodes(folder, 2, home, head_cpus=0)
    command = [sys.executable, "jobs/finetune.py", "--config", str(folder / "config.yaml")]
    command += ["--run.name", "mine", "--evaluate", "none"]

    def workers() -> list[int]:
        return [record.num_workers for record in run.history()]

    try:
        with (folder / "driver.log").open("wb") as log:
            own = home | {"RAY_ADDRESS": nodes.address}
            driver = subprocess.Popen(command, cwd=ROOT, env=own, stdout=log, stderr=log)
        wait_for(lambda: workers()[-1:] == [2], "an epoch on two workers", 600)
        nodes.take_away(2)
        wait_for(lambda: workers()[-1:] == [1], "an epoch on one worker", 600)
        nodes.bring_back(2)
        wait_for(lambda: workers()[-1:] == [2], "another epoch on two workers", 600)
        assert driver.wait(600) == 0, (folder / "driver.log").read_text()
    finally:
        nodes.close()
    changes = [n for n, before in zip(workers(), [0, *workers()], strict=False) if n != before]
    assert (changes, len(workers())) == ([2, 1, 2], EPOCHS)
    run_workers(undisturbed, 2, task, str(folder / "undisturbed"))
    expected, found = (
        TrainingState.load(max(place.glob(pattern))).model
        for place, pattern in ((folder / "undisturbed", "*"), (run.path / "train", "checkpoint_0*"))
    )
    start = flat(dict(trainer_of(elastic(task)).objective.state_dict()))
    moved, apart = (flat(dict(expected)) - start).norm(), (flat(dict(found)) - flat(dict(expected))).norm()
    print(f"apart {apart / moved:.1e}, workers {workers()}")
    assert apart < BOUND * moved
