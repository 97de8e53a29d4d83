"""A cluster that is too small, or away, is said in one line; what Ray itself prints is plain text."""

from dataclasses import replace
from pathlib import Path

import pytest
from ray._private.worker import print_to_stdstream

from distributed_autolora.config import ScalingConfig
from distributed_autolora.errors import RunFailedError, UserError
from distributed_autolora.orchestration.cluster.connection import (
    check_local_cpus,
    check_local_gpus,
    initialize,
    start_in_time,
)
from distributed_autolora.orchestration.cluster.local_cluster import LocalCluster
from distributed_autolora.orchestration.cluster.ray_internals import untested
from tests.programs import program
from tests.training.tasks import write_task


@pytest.mark.long
def test_a_cluster_without_room_is_waited_for_and_then_refused(tmp_path: Path) -> None:
    flags = ["--recipe", "demo", "--data.path", write_task(tmp_path / "task", train=140), "--data.train-images", "None"]
    flags += ["--run.output", str(tmp_path / "home"), "--scaling.wait-for-resources-s", "3", "--seed", "5"]
    with LocalCluster(num_cpus=1) as cluster:
        done = program("jobs/finetune.py", *flags, base=cluster.environment(), RAY_ADDRESS=cluster.address)
    assert done.returncode == 2
    waiting, refusal = [line for line in done.stderr.splitlines() if not line.startswith("warning")]
    assert waiting.startswith("Waiting for 2 CPU (free: 1) on the cluster, 3 s at most")
    assert refusal.startswith("error: After 3 s the cluster still lacks 2 CPU")


def test_what_ray_prints_has_no_colour_codes_once_a_program_asked_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_COLOR_PREFIX", "1")  # so that it is as before after the test
    monkeypatch.delenv("RAY_COLOR_PREFIX")
    warning = {"lines": ["A worker died."], "pid": "raylet", "is_err": False}
    print_to_stdstream(warning, ignore_prefix=False)
    assert "\x1b" in capsys.readouterr().out, "Ray colours a pipe, so the rest of this test says something"
    with pytest.raises(UserError, match="does not answer"):
        initialize("no address", {})
    print_to_stdstream({**warning, "lines": ["Another died."]}, ignore_prefix=False)
    assert capsys.readouterr().out == "(raylet) Another died.\n"


@pytest.mark.parametrize(
    ("version", "is_tested"), [("2.60.0", True), ("2.60.3", True), ("2.6.0", False), ("3.0.0", False)]
)
def test_only_the_ray_whose_internals_were_tested_gives_no_warning(version: str, is_tested: bool) -> None:
    assert (untested(version) == "") == is_tested


def test_a_ray_that_is_late_is_a_failure_that_another_attempt_may_fix() -> None:
    with pytest.raises(RunFailedError, match=r"in time \(The node timed out\). It may be overloaded"), start_in_time():
        raise Exception("The node timed out. See the logs.")


@pytest.mark.parametrize(
    ("scaling", "there", "said"),
    [
        (ScalingConfig(num_workers=1, cpus_per_worker=8), 2, "1 worker of 8 CPUs needs 8 CPUs, but this machine has 2. "
         "Give --cpus-per-worker 2, or"),
        (ScalingConfig(num_workers=4), 2, "4 workers of 1 CPU need 4 CPUs, but this machine has 2. "
         "Lower --workers, or"),
        (ScalingConfig(num_workers=2, cpus_per_worker=2), 2, "2 workers of 2 CPUs need 4 CPUs, but this machine has 2. "
         "Lower --workers, give --cpus-per-worker 1, or"),
        (ScalingConfig(num_workers=1, use_gpu=True), 0, "1 worker needs 1 GPU, but Ray sees 0 on this machine. "
         "Give --gpus 0, or"),
        (ScalingConfig(num_workers=2, use_gpu=True), 1, "2 workers need 2 GPUs, but Ray sees 1 on this machine. "
         "Lower --workers, give --gpus 0, or"),
    ],
)  # fmt: skip
def test_a_machine_with_too_few_cpus_or_gpus_is_refused_with_what_helps(
    scaling: ScalingConfig, there: int, said: str
) -> None:
    check = check_local_gpus if scaling.use_gpu else check_local_cpus
    with pytest.raises(UserError) as refusal:
        check(scaling, there)
    assert str(refusal.value) == f"{said} submit the job to a cluster."
    check(scaling, scaling.num_workers * (1 if scaling.use_gpu else scaling.cpus_per_worker))
    check_local_gpus(replace(scaling, use_gpu=False), there)
