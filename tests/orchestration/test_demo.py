"""The demo chooses the right run, shows the job and nothing else, and leaves nothing behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from distributed_autolora.config.recipes import recipe
from distributed_autolora.errors import UserError
from distributed_autolora.models import read_weights
from distributed_autolora.orchestration.cluster.local_cluster import LocalCluster
from distributed_autolora.orchestration.cluster.ray_internals import submit_job
from distributed_autolora.orchestration.demo import DemoRun, choose_run, is_routine, submit_and_follow
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.orchestration.runs.names import with_precision
from distributed_autolora.orchestration.runs.preflight import find_inputs
from tests.cases.shared import TINY
from tests.programs import ROOT, environment

RUN_OF_VERSION_0_1 = Path(__file__).parents[1] / "run_of_version_0_1"
# A stub of the training program: its flag, its folder and its exit status.
PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path

status = int(sys.argv[1])
folder = Path(os.environ["DISTRIBUTED_AUTOLORA_HOME"], "runs", sys.argv[sys.argv.index("--run.name") + 1])
folder.mkdir(parents=True, exist_ok=True)


def interrupted(number, frame):
    (folder / "told").touch()
    sys.exit(130)


signal.signal(signal.SIGTERM, interrupted)
seen = {name: os.environ.get(name) for name in ("RAY_ADDRESS", "OMP_NUM_THREADS")}
print("sees", json.dumps({**seen, "python": sys.executable}))
print("error: spoken on stderr", file=sys.stderr)
print("working", flush=True)
if status == 0:
    (folder / "result.json").write_text("{}")
elif status == 130:
    time.sleep(600)
sys.exit(status)
"""
DEMO = """
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from distributed_autolora.orchestration.demo import run_demo

home, folder, *entrypoint = sys.argv[1:]
sys.exit(run_demo(home=Path(home), working_dir=Path(folder), entrypoint=entrypoint))
"""


def chosen_run(runs: Path) -> DemoRun:
    with ExitStack() as claims:
        return choose_run(runs, claims)


def make_run(runs: Path, name: str, *, finished: bool) -> RunFolder:
    folder = runs / name
    folder.mkdir(parents=True)
    if finished:
        (folder / "result.json").write_text("{}")
    return RunFolder(folder)


@pytest.mark.parametrize(
    ("finished", "interrupted", "chosen"),
    [
        ((), (), ("demo-1", False)),
        (("demo-2", "demo-10", "demo-x", "demo-03", "demo-1-2"), (), ("demo-11", False)),
        (("demo-3",), ("demo-1", "demo-2"), ("demo-2", True)),
    ],
)
def test_the_highest_interrupted_demo_or_else_the_next_number_is_chosen(
    tmp_path: Path, finished: tuple[str, ...], interrupted: tuple[str, ...], chosen: tuple[str, bool]
) -> None:
    for name in (*finished, *interrupted):
        make_run(tmp_path / "runs", name, finished=name in finished)
    assert chosen_run(tmp_path / "runs") == chosen


def test_a_demo_that_another_process_works_on_is_left_to_it(tmp_path: Path) -> None:
    run = make_run(tmp_path, "demo-1", finished=False)
    run.acquire()
    assert chosen_run(tmp_path) == ("demo-2", False)
    run.release()
    assert chosen_run(tmp_path) == ("demo-1", True)


def test_demos_that_are_started_at_once_have_names_of_their_own(tmp_path: Path) -> None:
    for name in ("demo-1", "demo-2"):
        make_run(tmp_path, name, finished=name == "demo-1")
    with ExitStack() as claims:
        found = [choose_run(tmp_path, claims) for _ in range(9)]
        assert found == [("demo-2", True), *((f"demo-{number}", False) for number in range(3, 11))]
        with pytest.raises(UserError, match=r"demo-10 is in use by process \d+ on .* start fewer at once\."):
            choose_run(tmp_path, claims)
    assert chosen_run(tmp_path) == ("demo-2", True)


def test_a_demo_begun_with_other_values_is_left_alone(tmp_path: Path) -> None:
    today, _ = find_inputs(recipe("demo"))
    for name, config in (("demo-1", replace(today, seed=today.seed + 1)), ("demo-2", today)):
        run = make_run(tmp_path / "runs", name, finished=False)
        run.create(with_precision(config, "float32"))
        assert chosen_run(tmp_path / "runs") == ("demo-2", name == "demo-2")


def test_an_interrupted_demo_of_version_0_1_is_left_alone(tmp_path: Path) -> None:
    shutil.copytree(RUN_OF_VERSION_0_1, tmp_path / "demo-1", ignore=shutil.ignore_patterns("result.json"))
    assert chosen_run(tmp_path) == ("demo-2", False)


@pytest.mark.parametrize(
    ("line", "is_of_ray"),
    [
        ("2026-01-01 00:00:00,002\tINFO job_manager.py:581 -- Runtime env is setting up.", True),
        ("Running entrypoint for job demo-1: python jobs/finetune.py", True),
        ("2026-01-01 00:00:02,000\tWARNING worker.py:1 -- The object store is nearly full.", False),
        ("  epoch 2", False),
    ],
)
def test_ray_s_routine_messages_are_left_out_and_its_warnings_are_not(line: str, is_of_ray: bool) -> None:
    assert is_routine(line) == is_of_ray


def test_a_job_waits_for_the_agent_that_takes_it_and_for_nothing_else() -> None:
    answers = ["Request failed with status code 500: No available agent to submit job", "it is there already"]

    def submit(*, entrypoint: str) -> None:
        if answers:
            raise RuntimeError(f"{answers.pop(0)}: {entrypoint}")

    with pytest.raises(RuntimeError, match="it is there already: python"):
        submit_job(submit, entrypoint="python")
    submit_job(submit, entrypoint="python")
    answers = ["No available agent"]
    with pytest.raises(RuntimeError, match="No available agent: python"):
        submit_job(submit, -1.0, entrypoint="python")


def follow(cluster: LocalCluster, folder: Path, status: int) -> int:
    return submit_and_follow(
        cluster,
        submission_id=f"job-{status}",
        working_dir=folder,
        entrypoint=["python", "program.py", str(status), "--run.name", f"demo-{status}"],
        env_vars={"DISTRIBUTED_AUTOLORA_HOME": str(folder), "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.long
def test_a_job_is_followed_and_a_refusal_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    with LocalCluster() as cluster:
        assert follow(cluster, tmp_path, 0) == 0
        shown = capsys.readouterr().out.splitlines()
        assert sorted(shown[1:]) == ["error: spoken on stderr", "working"]
        seen = json.loads(shown[0].removeprefix("sees "))
        assert seen == {"RAY_ADDRESS": cluster.address, "OMP_NUM_THREADS": "1", "python": sys.executable}
        assert (tmp_path / "runs" / "demo-0" / "result.json").exists()
        assert follow(cluster, tmp_path, 2) == 2


@pytest.mark.long
def test_a_failure_is_told_from_a_job_that_could_not_be_submitted(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    with LocalCluster() as cluster:
        assert follow(cluster, tmp_path, 3) == 1
        with pytest.raises(UserError, match="Ray took no job") as caught:
            follow(cluster, tmp_path / "absent", 0)
    assert "\n" not in str(caught.value)


def until_working(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield line
        if "working" in line:
            return


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_stops_its_job_and_is_continued(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    home = tmp_path / "home"
    command = [sys.executable, "-c", DEMO, str(home), str(tmp_path), "python", "program.py"]
    with subprocess.Popen([*command, "130"], stdout=subprocess.PIPE, text=True, start_new_session=True) as demo:
        assert demo.stdout is not None
        try:
            said = list(until_working(demo.stdout))
            os.killpg(demo.pid, number)
            said += list(demo.stdout)
        except BaseException:  # as at the test's time limit: leaving the block would wait for the demo
            os.killpg(demo.pid, signal.SIGKILL)
            raise
    assert demo.returncode == 130
    assert "demo-1: a new run.\n" in said
    assert "Stopped. The same command continues demo-1.\n" in said
    assert (home / "runs" / "demo-1" / "told").exists()  # the program was asked to stop before it was ended

    again = subprocess.run([*command, "0"], capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert again.stdout.startswith("demo-1: continues where it was interrupted.\n")
    assert "make mlflow" in again.stdout


@pytest.mark.long
@pytest.mark.timeout(900)
def test_two_demos_at_once_are_two_runs_with_the_same_weights(tmp_path: Path) -> None:
    (tmp_path / "sent").mkdir()
    words = ("python", str(ROOT / "jobs" / "finetune.py"), "--recipe", "demo", *TINY)
    command = [sys.executable, "-c", DEMO, str(tmp_path / "home"), str(tmp_path / "sent"), *words]
    both = []
    for name in ("one", "other"):
        with (tmp_path / name).open("wb") as log:
            both.append(subprocess.Popen(command, env=environment(tmp_path / "home"), stdout=log, stderr=log))
    statuses = [demo.wait(timeout=800) for demo in both]
    said = [(tmp_path / name).read_text() for name in ("one", "other")]
    assert statuses == [0, 0], said
    assert sorted(text.partition(":")[0] for text in said) == ["demo-1", "demo-2"]
    runs = tmp_path / "home" / "runs"
    assert sorted(path.name for path in runs.iterdir()) == ["demo-1", "demo-2"]
    first, second = (read_weights(runs / name / "model.safetensors") for name in ("demo-1", "demo-2"))
    assert all(torch.equal(second[name], value) for name, value in first.items())
    found = MlflowClient(f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}").search_runs(["1"])
    trained = [run for run in found if run.data.tags.get("kind") != "evaluation"]
    assert sorted((run.info.run_name, run.info.status) for run in trained) == [
        ("demo-1", "FINISHED"),
        ("demo-2", "FINISHED"),
    ]
