"""A node that is taken away with a notice costs seconds: a checkpoint at once, then on with its replacement."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distributed_autolora.config.experiment import config_text
from distributed_autolora.models import read_weights
from tests.chaos.nodes import Nodes
from tests.orchestration.runs.test_survival import epochs_of
from tests.programs import ROOT, environment, wait_for
from tests.training.gloo import run_workers
from tests.training.tasks import small_config, write_task
from tests.training.test_resume import run

EPOCHS, NOTICE_S = 3, 12


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pre") as path:
        yield Path(path)


def undisturbed(task: str, folder: str) -> dict[str, torch.Tensor]:
    result = run(task, Path(folder), epochs=EPOCHS)
    assert result is not None
    return result[0]


@pytest.mark.long
def test_a_node_taken_away_with_a_notice_costs_no_failure_and_changes_nothing(folder: Path) -> None:
    task = write_task(folder / "task", train=900)
    config = small_config(task, epochs=EPOCHS, global_batch_size=32)
    scaling = replace(config.scaling, check_finite_every=1, checkpoint_every_s=1e9, max_failures=0)
    (folder / "config.yaml").write_text(config_text(replace(config, scaling=scaling)))
    home = environment(folder / "home", RAY_AUTH_MODE="disabled", RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="1")
    run_folder = folder / "home" / "runs" / "mine"
    nodes = Nodes(folder, 2, home, head_cpus=0)
    command = [sys.executable, "jobs/finetune.py", "--config", str(folder / "config.yaml")]
    command += ["--run.name", "mine", "--evaluate", "none"]
    try:
        with (folder / "driver.log").open("wb") as log:
            own = home | {"RAY_ADDRESS": nodes.address}
            driver = subprocess.Popen(command, cwd=ROOT, env=own, stdout=log, stderr=log)
        wait_for(lambda: epochs_of(run_folder / "history.json") >= 1, "epoch 1")
        nodes.announce_the_end(nodes.ids()[0], NOTICE_S)
        told = time.monotonic()
        wait_for(lambda: any((run_folder / "train").glob("checkpoint_*_step_*")), "a checkpoint within the epoch")
        assert time.monotonic() - told < NOTICE_S
        time.sleep(max(0.0, told + NOTICE_S - time.monotonic()))
        nodes.kill(1)
        assert driver.wait(300) == 0, (folder / "driver.log").read_text()
    finally:
        nodes.close()
    (expected, *_) = run_workers(undisturbed, 2, task, str(folder / "undisturbed"))
    for name, value in read_weights(run_folder / "model.safetensors").items():
        assert torch.equal(value, expected[f"backbone.{name}"]), name
