"""The demo: one fine-tuning run, submitted as a job to a Ray cluster that lives as long as the run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from distributed_autolora.config.recipes import recipe
from distributed_autolora.console import print_line
from distributed_autolora.errors import UserError
from distributed_autolora.hardware import available_cpus
from distributed_autolora.orchestration.cluster.local_cluster import LocalCluster
from distributed_autolora.orchestration.cluster.processes import stop_signals_interrupt, uninterrupted
from distributed_autolora.orchestration.runs.folder import RunFolder, check_writable
from distributed_autolora.orchestration.runs.names import find_run

_FAILED, _REFUSED, _INTERRUPTED = 1, 2, 130
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_STOP_TIMEOUT_S = 15
# How Ray's own programs log, to a file or pipe: time, level, source line.
_RAY_LOG = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\t(?P<level>[A-Z]+) (?P<file>\w+\.py):\d+ -- ")


class DemoRun(NamedTuple):
    """Which run the demo works on."""

    name: str
    continued: bool


def choose_run(runs: Path) -> DemoRun:
    """Returns the highest-numbered interrupted demo-N in the folder of all runs, otherwise the next number.

    Interrupted is a run of today's recipe without a result that no live process holds.

    Raises:
        UserError: when the folder cannot be written.
    """
    check_writable(runs)
    names = [folder.name for folder in runs.iterdir() if folder.is_dir()]
    numbers = sorted(int(name.removeprefix("demo-")) for name in names if re.fullmatch(r"demo-[1-9]\d*", name))
    for number in reversed(numbers):
        folder = RunFolder(runs / f"demo-{number}")
        if not folder.is_finished() and not _is_in_use(folder) and not _is_of_another_recipe(folder):
            return DemoRun(folder.name, continued=True)
    return DemoRun(f"demo-{max(numbers, default=0) + 1}", continued=False)


def _is_of_another_recipe(folder: RunFolder) -> bool:
    """Tells whether an earlier version of the package began the run with other values, so that it cannot go on."""
    if not folder.exists():
        return False
    from distributed_autolora.orchestration.runs.preflight import find_inputs

    config = recipe("demo")
    run = replace(config.run, name=folder.name, output=str(folder.path.parent.parent))
    try:
        find_run(find_inputs(replace(config, run=run))[0])
    except UserError:
        return True
    return False


def _is_in_use(folder: RunFolder) -> bool:
    try:
        folder.acquire()
    except UserError:
        return True
    folder.release()
    return False


def run_demo(*, home: Path, working_dir: Path, entrypoint: Sequence[str]) -> int:
    """Runs one demo on a cluster of its own, printing what the job prints, and stops the cluster.

    Args:
        home: absolute output folder; the run is kept in runs/demo-N below it.
        working_dir: folder that is sent to the cluster; the job starts in a copy of it.
        entrypoint: command of the job, without the run's name: `--run.name demo-N` is appended.

    Returns:
        The exit status: 0 done, 1 failed, 2 refused by the job, 130 stopped by Ctrl-C, SIGTERM or SIGHUP.

    Raises:
        UserError: when the cluster or the submission fails.
    """
    run = choose_run(home / "runs")
    cpus = max(2, available_cpus())
    print_line(f"{run.name}: {'continues where it was interrupted' if run.continued else 'a new run'}.")
    print_line(f"Starting a Ray cluster of its own on this machine ({cpus} CPUs) ...")
    with stop_signals_interrupt():
        try:
            with LocalCluster(num_cpus=cpus) as cluster:
                print_line(f"The cluster answers at {cluster.dashboard_url}; submitting the job ...")
                status = submit_and_follow(
                    cluster,
                    submission_id=run.name,
                    working_dir=working_dir,
                    entrypoint=[*entrypoint, "--run.name", run.name],
                    env_vars={"DISTRIBUTED_AUTOLORA_HOME": str(home), "OMP_NUM_THREADS": "1"},
                )
        except KeyboardInterrupt:
            print(f"Stopped. {_continuation(home / 'runs' / run.name)}", flush=True)
            return _INTERRUPTED
    if status == 0:
        print_line(_next_steps(home / "runs" / run.name, working_dir))
    elif status == _FAILED:
        print(f"{run.name} did not finish. {_continuation(home / 'runs' / run.name)}", flush=True)
    return status


def _continuation(folder: Path) -> str:
    """Returns what continues a demo that was stopped: while training, or while its result was checked."""
    if RunFolder(folder).is_finished():
        return f"{folder.name} is trained: python jobs/finetune.py --recipe demo --run.name {folder.name} checks it."
    return f"The same command continues {folder.name}."


def submit_and_follow(
    cluster: LocalCluster, *, submission_id: str, working_dir: Path, entrypoint: Sequence[str], env_vars: dict[str, str]
) -> int:
    """Submits a job as `ray job submit` does from a terminal, and prints its lines as they come.

    Leaving by an exception, KeyboardInterrupt for one, stops the job first.

    Returns:
        0 for a job that succeeded, 2 for one whose program refused its input, otherwise 1.

    Raises:
        UserError: when the job could not be submitted.
    """
    # Parts of Ray Train look for "the" cluster of the machine unless this names one.
    runtime_env = {"env_vars": {"RAY_ADDRESS": cluster.address, "PYTHONUNBUFFERED": "1", **env_vars}}
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", cluster.dashboard_url]
    command += ["--log-style", "record", "--log-color", "false"]
    command += ["--submission-id", submission_id, "--working-dir", str(working_dir)]
    command += ["--runtime-env-json", json.dumps(runtime_env), "--", *entrypoint]
    errors = cluster.folder / "submit.log"
    refused: list[str] = []
    with errors.open("w") as log:
        client = subprocess.Popen(
            command,
            env=cluster.environment(),
            cwd=cluster.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # As the cluster: Ctrl-C must not reach it before the job is stopped in order.
            start_new_session=True,
        )
        try:
            assert client.stdout is not None
            for line in job_lines(client.stdout, refused):
                print(line, flush=True)
            client.wait()
        except BaseException:
            with uninterrupted():
                _stop_job(cluster, submission_id)
                client.kill()
                client.wait()
            raise
    return _exit_status(cluster, submission_id, [*refused, *errors.read_text().splitlines()])


def job_lines(lines: Iterable[str], before: list[str]) -> Iterator[str]:
    """Yields the job's own lines out of what `ray job submit` prints, without Ray's routine messages.

    Args:
        lines: standard output of `ray job submit --log-style record --log-color false`.
        before: receives what was printed before the job began.
    """
    stream = iter(lines)
    for line in stream:
        before.append(line.rstrip("\n"))
        if "Tailing logs until the job exits" in line:
            break
    ended = False
    for line in stream:
        ray = _RAY_LOG.match(line)
        # Ray's closing box; when the job failed, its last lines come once more after it.
        ended = ended or bool(ray and ray["file"] == "cli.py")
        if not ended and not (ray and ray["level"] == "INFO") and not line.startswith("Running entrypoint for job "):
            yield line.rstrip("\n")


def _stop_job(cluster: LocalCluster, submission_id: str) -> None:
    """Asks the job to end, and waits until it has: its program may have something to write down."""
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    try:
        _ask(cluster, f"/api/jobs/{submission_id}/stop", method="POST")
        while _ask(cluster, f"/api/jobs/{submission_id}")["status"] not in _ENDED and time.monotonic() < deadline:
            time.sleep(0.2)
    except OSError:
        return  # there is no such job yet; nothing is lost, the cluster ends next


def _exit_status(cluster: LocalCluster, submission_id: str, said: list[str]) -> int:
    try:
        job = _ask(cluster, f"/api/jobs/{submission_id}")
    except OSError as error:
        text = " | ".join([line.strip() for line in said if line.strip()][-8:])
        raise UserError(
            f"Ray took no job, or lost it ({error}); the same command tries again. Its last words: {text or '(none)'}"
        ) from error
    if job["status"] == "SUCCEEDED":
        return 0
    if job.get("driver_exit_code") is None:  # its program was never started, or killed: it could not say why
        print(f"The job ended as {job['status']}: {job.get('message')}", file=sys.stderr)
    return _REFUSED if job.get("driver_exit_code") == _REFUSED else _FAILED


def _ask(cluster: LocalCluster, path: str, method: str = "GET") -> dict[str, Any]:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"{cluster.dashboard_url}{path}", method=method)
    with direct.open(request, timeout=_STOP_TIMEOUT_S) as response:
        return dict(json.load(response))


def _next_steps(folder: Path, working_dir: Path) -> str:
    interpreter = Path(sys.executable)
    inside = interpreter.is_relative_to(working_dir)
    python = str(interpreter.relative_to(working_dir)) if inside else "python"
    return f"""
Next:
  make mlflow    shows this run's curves, images and model in a browser
  make demo      starts the next run
  {folder}
                 holds its config, checkpoints, result and final model
Your own images, one folder a class, on a network of your own:
  {python} jobs/prepare_data.py folder --source IMAGES --output DATA
  {python} jobs/finetune.py --recipe custom --data.path DATA --model.weights WEIGHTS"""
