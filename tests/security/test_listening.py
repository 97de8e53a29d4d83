"""Nothing listens beyond this machine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from distributed_autolora.orchestration.mlflow_tracking import connect
from distributed_autolora.training.distributed.collectives import open_rendezvous
from tests.orchestration.cluster.test_local_cluster import listening
from tests.orchestration.mlflow_tracking.tracking_server import free_port
from tests.programs import ROOT, environment, wait_for
from tests.security.watching import LOOPBACK, descendants

LOCAL_RAY = """
import sys
from distributed_autolora.config import ScalingConfig
from distributed_autolora.orchestration.cluster.connection import connect
connect(ScalingConfig(num_workers=1))
import ray
ray.get(ray.remote(lambda: None).remote())
print("up", flush=True)
sys.stdin.read()
"""


def test_a_local_ray_listens_on_loopback_only(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOCAL_RAY]
    with subprocess.Popen(
        command,
        env=environment(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "up\n"
        sockets = listening(descendants(program.pid))
        program.communicate("")
    assert len(sockets) > 5, "the raylet, the GCS and a worker at least"
    assert {address for address, _ in sockets} <= LOOPBACK


def test_workers_meet_on_the_given_address_only() -> None:
    port, store = open_rendezvous("127.0.0.1")
    own = {address for address, number in listening({os.getpid()}) if number == port}
    joined = torch.distributed.TCPStore("127.0.0.1", port, is_master=False)  # type: ignore[attr-defined]
    joined.set("key", "value")
    assert store.get("key") == b"value"
    assert own
    assert own <= LOOPBACK


@contextmanager
def make_mlflow(home: Path, stamp: Path) -> Iterator[tuple[int, int]]:
    """Runs `make mlflow` with this interpreter, and yields its process id and port once it answers."""
    port = free_port()
    stamp.touch()
    command = ["make", "mlflow", f"PORT={port}", f"BIN={Path(sys.executable).parent}", f"INSTALLED={stamp}"]
    program = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: any(number == port for _, number in listening(descendants(program.pid))), "`make mlflow`")
        yield program.pid, port
    finally:
        for pid in descendants(program.pid):
            os.kill(pid, 9)
        program.wait()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_make_mlflow_listens_on_loopback_only(tmp_path: Path) -> None:
    connect(f"sqlite:///{tmp_path}/mlflow.db")
    with make_mlflow(tmp_path, tmp_path / "installed") as (pid, port):
        sockets = listening(descendants(pid))
    assert port in {number for _, number in sockets}
    assert {address for address, _ in sockets} <= LOOPBACK
