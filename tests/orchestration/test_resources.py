"""On a cluster that is too small a run says so, waits with a limit, and gives up in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from distributed_autolora.orchestration.local_cluster import LocalCluster
from tests.training.tasks import write_task

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.long
def test_a_cluster_without_room_is_waited_for_and_then_refused(tmp_path: Path) -> None:
    flags = ["--recipe", "demo", "--data.path", write_task(tmp_path / "task", train=140), "--data.train-images", "None"]
    flags += ["--run.output", str(tmp_path / "home"), "--scaling.wait-for-resources-s", "3", "--seed", "5"]
    with LocalCluster(num_cpus=1) as cluster:
        environment = {**cluster.environment(), "RAY_ADDRESS": cluster.address, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "jobs/finetune.py", *flags]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    waiting, refusal = [line for line in done.stderr.splitlines() if not line.startswith("warning")]
    assert waiting.startswith("Waiting for 2 CPU (free: 1) on the cluster, 3 s at most")
    assert refusal.startswith("error: After 3 s the cluster still lacks 2 CPU")
