"""A real run with MLflow credentials in its environment listens on loopback only, and writes them nowhere."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from distributed_autolora.config.experiment import config_text
from distributed_autolora.models import build, save_weights
from tests.orchestration.cluster.test_local_cluster import listening
from tests.orchestration.mlflow_tracking.tracking_server import TrackingServer
from tests.programs import ROOT, environment, wait_for
from tests.security.watching import LOOPBACK, SECRET, descendants
from tests.training.tasks import small_config, write_task


@dataclass
class WatchedRun:
    """What was seen of a run whose tracking server has a password."""

    folder: Path
    output: str
    sockets: set[tuple[str, int]]
    ray_logs: Path
    tracking: Path


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedRun]:
    folder = tmp_path_factory.mktemp("watched")
    tracking, ray_logs = folder / "tracking", Path("/tmp") / f"sec-{os.getpid()}"
    tracking.mkdir()
    server = TrackingServer(tracking)
    server.start()
    task = write_task(folder / "task", train=140)
    weights = folder / "weights.safetensors"
    save_weights(build("small_resnet", 3, mean=(0.5,), std=(0.25,)).backbone.state_dict(), weights)
    config = small_config(f"file://{task}", epochs=4, global_batch_size=32)
    config = replace(config, model=replace(config.model, weights=f"file://{weights}"))
    config = replace(config, run=replace(config.run, mlflow_uri=server.uri))
    (folder / "config.yaml").write_text(config_text(config))
    command = [sys.executable, "jobs/finetune.py", "--config", str(folder / "config.yaml"), "--run.name", "mine"]
    credentials = {"MLFLOW_TRACKING_USERNAME": "user", "MLFLOW_TRACKING_PASSWORD": SECRET}
    ray_logs.mkdir()
    history = folder / "home" / "runs" / "mine" / "history.json"
    program = subprocess.Popen(
        [*command, "--evaluate", "none"],
        cwd=ROOT,
        env=environment(folder / "home", RAY_TMPDIR=str(ray_logs)) | credentials,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(lambda: history.is_file() or program.poll() is not None, "epoch 1")
        sockets = listening(descendants(program.pid))
        output, _ = program.communicate(timeout=280)
    finally:
        program.kill()
        server.kill()
    assert program.returncode == 0, output
    yield WatchedRun(history.parent, output, sockets, ray_logs, tracking)
    shutil.rmtree(ray_logs)


def holders(folder: Path) -> set[str]:
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    return {str(file.relative_to(folder)) for file in files if SECRET.encode() in file.read_bytes()}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_with_two_workers_listens_on_loopback_only(watched: WatchedRun) -> None:
    assert len(watched.sockets) > 8
    assert {address for address, _ in watched.sockets} <= LOOPBACK


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_writes_the_password_of_its_tracking_server_nowhere(watched: WatchedRun) -> None:
    assert not holders(watched.folder)
    assert SECRET not in watched.output
    assert not holders(watched.tracking)
    assert not holders(watched.ray_logs)
