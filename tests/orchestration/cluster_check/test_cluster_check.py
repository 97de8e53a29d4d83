"""The cluster check finds what would end or spoil a run, and says what to do."""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distributed_autolora.config import ComputeConfig, ExperimentConfig, RunConfig, ScalingConfig
from distributed_autolora.config.recipes import recipe
from distributed_autolora.core.losses import LossTerms
from distributed_autolora.errors import UserError
from distributed_autolora.hardware import free_memory
from distributed_autolora.orchestration.cluster.address import is_open_to_others
from distributed_autolora.orchestration.cluster.local_cluster import LocalCluster
from distributed_autolora.orchestration.cluster.processes import end_family
from distributed_autolora.orchestration.cluster_check import findings
from distributed_autolora.orchestration.cluster_check.findings import GIB, Finding, NodeFacts, Place
from distributed_autolora.orchestration.cluster_check.nodes import driver_file, look, versions
from distributed_autolora.orchestration.cluster_check.report import report
from distributed_autolora.orchestration.runs.names import with_precision
from distributed_autolora.training.memory_estimate import estimate, kept_bytes
from distributed_autolora.training.methods.registry import build_objective, fresh_classifier, method_of
from tests.programs import environment, program

# `ray start` joins no cluster that is on loopback alone.
SECOND_NODE = """
import sys, time
from ray._private.node import Node
from ray._private.parameter import RayParams
own = dict(num_cpus=1, num_gpus=0, object_store_memory=150 << 20, include_log_monitor=False, node_manager_port=0)
free = dict(min_worker_port=0, max_worker_port=0, dashboard_agent_listen_port=None, node_ip_address="127.0.0.1")
there = dict(redis_address=sys.argv[1], gcs_address=sys.argv[1])
node = Node(RayParams(**there, **own, **free), head=False, shutdown_at_exit=True)
time.sleep(600)
"""
A, B = "10.0.0.1 (aaaaaa)", "10.0.0.2 (bbbbbb)"
TOKEN = "0123456789abcdef"


def node(name: str = A, **changes: object) -> NodeFacts:
    facts = NodeFacts(
        node=name,
        versions={"Python": "3.11.7", "torch": "2.14.1"},
        output_problem="",
        output_free=100 * GIB,
        cache_free=100 * GIB,
        cache_problem="",
        memory_free=32 * GIB,
        torch_gpus=1,
        inputs={"data": (True, "/shared/data, 5 bytes")},
    )
    return replace(facts, **changes)  # type: ignore[arg-type]


def test_a_node_with_another_torch_fails_and_is_named() -> None:
    same, other = node(A), node(B, versions={"Python": "3.11.7", "torch": "2.13.0"})
    assert findings.check_versions([same, node(B)]).level == "PASS"
    finding = findings.check_versions([same, other])
    assert finding.level == "FAIL"
    assert f"torch 2.14.1 on {A}; torch 2.13.0 on {B}" in str(finding)
    assert "Python" not in finding.figure


def test_an_output_folder_that_one_node_does_not_share_fails() -> None:
    assert findings.check_output("/out", [node(A), node(B)]).level == "PASS"
    finding = findings.check_output("/out", [node(A), node(B, output_problem="there is no such folder")])
    assert finding.level == "FAIL"
    assert B in finding.figure
    assert A not in finding.figure
    assert "--output" in finding.advice


def test_data_must_be_readable_and_the_same_everywhere() -> None:
    missing = (False, "/shared/data does not exist")
    assert [finding.level for finding in findings.check_inputs([node(A), node(B)])] == ["PASS"]
    for here, there in (((True, "/shared/data, 5 bytes"), missing), (missing, missing), ((True, "5"), (True, "6"))):
        (finding,) = findings.check_inputs([node(A, inputs={"data": here}), node(B, inputs={"data": there})])
        assert finding.level == "FAIL"


def test_a_disk_fails_when_short_and_warns_when_tight() -> None:
    for free, level in ((10 * GIB - 1, "FAIL"), (10 * GIB, "WARN"), (20 * GIB, "PASS")):
        assert findings.check_disks([node(A), node(B, output_free=free)], 10 * GIB, 0).level == level
        assert findings.check_disks([node(A), node(B, cache_free=free)], 0, 10 * GIB).level == level
    assert findings.check_disks([node(cache_problem="it belongs to somebody else")], 0, 0).level == "FAIL"


def test_gpus_that_torch_does_not_see_end_a_gpu_run_only() -> None:
    blind = [node(A), node(B, torch_gpus=0)]
    told = {A: 1, B: 1}
    assert findings.check_gpus([node(A), node(B)], told, 2).level == "PASS"
    assert findings.check_gpus(blind, told, 2).level == "FAIL"
    assert findings.check_gpus(blind, told, 0).level == "WARN"
    idle = str(findings.check_gpus([node(A), node(B)], told, 0))
    assert idle.startswith("WARN  GPUs: ")
    assert idle.endswith("give --gpus N.")
    assert findings.check_gpus([node(A), node(B)], told, 3).level == "FAIL"
    assert findings.check_gpus([node(A, torch_gpus=4)], {A: 1}, 1).level == "WARN"


def test_workers_of_one_node_share_its_memory() -> None:
    nodes = {"a": node(A, memory_free=10 * GIB), "b": node(B, memory_free=10 * GIB)}
    apart, together = [Place("a", None), Place("b", None)], [Place("a", None), Place("a", None)]
    assert findings.check_memory(apart, nodes, 5 * GIB, GIB).level == "PASS"
    finding = findings.check_memory(together, nodes, 5 * GIB, GIB)
    assert finding.level == "FAIL"
    assert "12.0 GiB for 2 workers, 10.0 GiB free" in finding.figure
    assert findings.check_memory(together, nodes, 7 * GIB // 2, GIB).level == "WARN"


def test_on_a_gpu_its_own_memory_counts() -> None:
    nodes = {"a": node(A, memory_free=4 * GIB)}
    for gpu_free, level in ((24 * GIB, "PASS"), (22 * GIB, "WARN"), (16 * GIB, "FAIL")):
        finding = findings.check_memory([Place("a", gpu_free)], nodes, 18 * GIB, GIB)
        assert finding.level == level
        assert "a GPU of" in finding.figure


OPEN_HEAD, OWN_HEAD = {"head": ("10.0.0.1:6379", True)}, {"head": ("127.0.0.1:6379", False)}


@pytest.mark.parametrize(
    ("finding", "level"),
    [
        (findings.check_all_reduce("2 workers", GIB, 5.0, ""), "PASS"),
        (findings.check_all_reduce("2 workers", GIB, 1500.0, ""), "WARN"),
        (findings.check_all_reduce("2 workers", GIB, 5.0, "the sums are wrong"), "FAIL"),
        (findings.check_tracking("sqlite:////out/mlflow.db", "", 1), "PASS"),
        (findings.check_tracking("sqlite:////out/mlflow.db", "", 2), "WARN"),
        (findings.check_tracking("http://host:5000", "", 2), "PASS"),
        (findings.check_access("disabled", OPEN_HEAD), "WARN"),
        (findings.check_access("token", OPEN_HEAD), "PASS"),
        (findings.check_access("disabled", OWN_HEAD), "PASS"),
    ],
)
def test_the_level_of_all_reduce_tracking_and_open_ports(finding: Finding, level: str) -> None:
    assert finding.level == level


@pytest.mark.parametrize(("host", "is_open"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_a_service_on_loopback_alone_is_closed_to_other_machines(host: str, is_open: bool) -> None:
    with contextlib.closing(socket.create_server((host, 0))) as listener:
        assert is_open_to_others(f"127.0.0.1:{listener.getsockname()[1]}") is is_open
    assert is_open_to_others("10.0.0.1:6379")


def test_a_finding_is_one_line_that_says_what_to_do() -> None:
    assert str(Finding("FAIL", "disk", "full", "free some space.")) == "FAIL  disk: full -> free some space."
    assert str(Finding("PASS", "disk", "empty")) == "PASS  disk: empty"


def test_a_node_tells_the_driver_s_folder_from_another(tmp_path: Path) -> None:
    shared, other = tmp_path / "shared", tmp_path / "other"
    shared.mkdir()
    other.mkdir()
    driver_file(str(shared), TOKEN).write_text(TOKEN)
    driver_file(str(other), TOKEN).write_text("of another check")
    seen = look(A, TOKEN, str(shared), str(tmp_path / "cache"), {"data": str(other), "weights": None})
    assert seen.output_problem == ""
    assert not seen.inputs["data"][0]
    assert "weights" not in seen.inputs
    assert seen.versions == versions()
    assert 0 < seen.memory_free <= free_memory() + GIB
    assert list(shared.iterdir()) == [driver_file(str(shared), TOKEN)]
    assert "another folder" in look(A, TOKEN, str(other), None, {}).output_problem
    assert "no such folder" in look(A, TOKEN, str(tmp_path / "none"), None, {}).output_problem


def small(batch: int, workers: int = 1) -> ExperimentConfig:
    config = recipe("demo")
    return replace(
        config,
        optimization=replace(config.optimization, global_batch_size=batch),
        scaling=ScalingConfig(num_workers=workers),
        compute=ComputeConfig(attack_precision="float32", train_precision="float32"),
    )


def test_on_the_meta_device_as_much_is_kept_as_on_the_cpu() -> None:
    config = small(8)
    sizes = []
    for device in ("cpu", "meta"):
        objective = build_objective(config, fresh_classifier(config, 5, None).to(device)).to(device).train()
        x = torch.zeros(8, 1, 28, 28, device=device)
        y = torch.zeros(8, dtype=torch.int64, device=device)
        held = [*objective.parameters(), *objective.buffers()]

        def forward(objective: torch.nn.Module = objective, x: torch.Tensor = x, y: torch.Tensor = y) -> object:
            further = method_of(config).step_arguments(8, range(8))
            terms: LossTerms = objective(x, x.clone(), y, denominator=8.0, **further)
            return terms.total

        sizes.append(kept_bytes(forward, held))
    assert sizes[0] == sizes[1] > 0


def test_a_worker_s_share_of_the_batch_sets_what_a_step_needs() -> None:
    whole, half, quarter = (estimate(small(64, workers), (28, 28)) for workers in (1, 2, 4))
    fixed = 2 * half.step - whole.step  # merged weights
    assert whole.step - half.step == pytest.approx(2 * (half.step - quarter.step), rel=1e-3)
    assert 0 <= fixed < whole.step / 10
    assert whole.state == half.state
    assert whole.attack == quarter.attack


def test_a_moving_average_is_counted_in_memory_twice_and_in_each_of_three_checkpoints_twice() -> None:
    config = small(64, 1)
    with_average = replace(config, method=replace(config.method, weight_average="deployed"))
    plain, more = estimate(config, (28, 28)), estimate(with_average, (28, 28))
    classifier = fresh_classifier(config, 1000, None).state_dict()
    average = sum(value.nbytes for value in classifier.values())
    assert more.state - plain.state == 2 * average
    assert more.checkpoints - plain.checkpoints == 6 * average
    assert more.gradients == plain.gradients


def test_the_measured_peak_of_a_step_is_within_the_reserve_that_the_check_asks_for() -> None:
    # A warning comes when less than a fifth of the memory would be left: an estimate may be wrong by that.
    # docs/results/performance-two-cores/memory.json: ResNet-18, 224 pixels, 8 images, AutoLoRa in bfloat16: 448.9 MiB.
    config = recipe("cub")
    config = replace(
        config,
        optimization=replace(config.optimization, global_batch_size=8),
        evaluation=replace(config.evaluation, batch_size_per_worker=8),
        compute=ComputeConfig(attack_precision="bfloat16", train_precision="bfloat16"),
    )
    share = estimate(config, None).on_device(use_gpu=False) / (1 << 20) / 448.9
    assert findings.MEMORY_SHARE < share < 1 / findings.MEMORY_SHARE


def test_on_a_gpu_the_pool_of_the_attack_s_cuda_graph_is_counted_beside_the_step() -> None:
    config = with_precision(recipe("cub-resnet50"), "bfloat16")
    needed = estimate(config, None)
    assert needed.on_device(use_gpu=True) - needed.on_device(use_gpu=False) >= min(needed.step, needed.attack)
    assert needed.on_device(use_gpu=True) / GIB == pytest.approx(26.5, abs=0.5)


def test_more_workers_than_this_machine_has_room_for_are_refused(tmp_path: Path) -> None:
    config = replace(
        recipe("demo"), scaling=ScalingConfig(num_workers=10_000), run=RunConfig(output=str(tmp_path / "out"))
    )
    with pytest.raises(UserError, match="--workers"):
        report(config)


@pytest.mark.long
def test_on_a_local_ray_every_check_is_made(tmp_path: Path) -> None:
    with contextlib.closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))  # never listens: a connection is refused
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        own = environment(tmp_path / "home")
        done = program("jobs/doctor.py", "--run.output", tmp_path, "--run.mlflow-uri", uri, base=own)
    lines = {line.split(":")[0][6:]: line for line in done.stdout.splitlines()}
    passing = ("versions", "output folder", "data", "weights", "disk", "GPUs", "all-reduce", "memory", "access")
    assert {name: lines[name][:4] for name in passing} == dict.fromkeys(passing, "PASS"), done.stdout + done.stderr
    assert lines["tracking"].startswith("FAIL"), done.stdout
    assert done.returncode == 1, done.stderr
    assert "1 of 10 checks failed" in done.stderr
    assert "a local Ray is started" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def divided(tmp_path: Path) -> Iterator[tuple[LocalCluster, Path]]:
    """A cluster of two nodes, of which the second sees another folder at the same path."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("only root may give a process mounts of its own")
    output = tmp_path / "out"
    output.mkdir()
    with LocalCluster(num_cpus=1) as cluster:
        join = f"mount -t tmpfs none {output} && exec {sys.executable} -c '{SECOND_NODE}' {cluster.address}"
        second = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", join],
            env=cluster.environment(),
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield cluster, output
        finally:
            end_family(second)


@pytest.mark.long
def test_a_node_with_another_output_folder_is_found_and_the_workers_still_meet(
    divided: tuple[LocalCluster, Path],
) -> None:
    cluster, output = divided
    time.sleep(10)  # until the second node has joined; without it there is no room for two workers
    flags = ["--run.output", str(output), "--scaling.num-workers", "2", "--scaling.wait-for-resources-s", "60"]
    done = program("jobs/doctor.py", *flags, base=cluster.environment(), RAY_ADDRESS=cluster.address)
    lines = {line.split(":")[0][6:]: line for line in done.stdout.splitlines()}
    assert lines["output folder"].startswith("FAIL"), done.stdout + done.stderr
    assert "another folder" in lines["output folder"]
    assert "2 workers on 2 nodes" in lines["all-reduce"]
    assert lines["all-reduce"].startswith("PASS")
    assert done.returncode == 1
    assert list(output.glob(".doctor-*")) == []
