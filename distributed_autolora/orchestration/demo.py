"""The demo: one fine-tuning run, submitted as a job to a Ray cluster that lives as long as the run."""

import asyncio
import contextlib
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import ClientError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from distributed_autolora.config.recipes import recipe
from distributed_autolora.console import command, job_file, print_line
from distributed_autolora.errors import UserError, first_line
from distributed_autolora.files import claimed
from distributed_autolora.hardware import available_cpus
from distributed_autolora.orchestration.cluster.local_cluster import LocalCluster
from distributed_autolora.orchestration.cluster.processes import stop_signals_interrupt, uninterrupted
from distributed_autolora.orchestration.cluster.ray_internals import submit_job
from distributed_autolora.orchestration.runs.folder import RunFolder, check_writable
from distributed_autolora.orchestration.runs.names import find_run
from distributed_autolora.orchestration.runs.preflight import find_inputs

_FAILED, _REFUSED, _INTERRUPTED = 1, 2, 130
_STOP_TIMEOUT_S = 15
_MOST_AT_ONCE = 8
_RAY_FAILURES = (RuntimeError, ValueError, OSError, ClientError)
_ROUTINE = re.compile(r"Running entrypoint for job |\d{4}-\d\d-\d\d [\d:,]+\tINFO \w+\.py:\d+ -- ")


class DemoRun(NamedTuple):
    """Which run the demo works on."""

    name: str
    continued: bool


def choose_run(runs: Path, claims: contextlib.ExitStack) -> DemoRun:
    """Returns the highest-numbered interrupted demo-N in the folder of all runs, otherwise the next number.

    An interrupted run has no result, is not locked by a live process, and can be resumed by today's recipe. The name is
    claimed until `claims` closes: the run itself is locked only once Ray has started.

    Raises:
        UserError: when the folder cannot be written.
    """
    check_writable(runs)
    names = [folder.name for folder in runs.iterdir() if folder.is_dir()]
    numbers = sorted(int(name.removeprefix("demo-")) for name in names if re.fullmatch(r"demo-[1-9]\d*", name))
    first = max(numbers, default=0) + 1
    refusal: UserError | None = None
    for number in [*reversed(numbers), *range(first, first + _MOST_AT_ONCE)]:
        folder = RunFolder(runs / f"demo-{number}")
        if folder.is_finished():
            continue
        with contextlib.ExitStack() as claim:
            try:
                words = {"what": folder.name, "otherwise": "start fewer at once", "elsewhere": "output folder"}
                claim.enter_context(claimed(runs / f".{folder.name}.demo", **words))
            except UserError as error:
                refusal = error
                continue
            if _is_interrupted(folder) if number < first else not folder.path.exists():
                claims.push(claim.pop_all())
                return DemoRun(folder.name, continued=number < first)
    raise refusal or UserError(f"Too many demos start in {runs} at once: start fewer.")


def _is_interrupted(folder: RunFolder) -> bool:
    return not folder.is_finished() and not _is_in_use(folder) and _can_be_resumed(folder)


def _can_be_resumed(folder: RunFolder) -> bool:
    if not folder.exists():
        return True
    config = recipe("demo")
    run = replace(config.run, name=folder.name, output=str(folder.path.parent.parent))
    try:
        find_run(find_inputs(replace(config, run=run))[0])
        folder.history()
    except UserError:
        return False
    return True


def _is_in_use(folder: RunFolder) -> bool:
    try:
        folder.acquire()
    except UserError:
        return True
    folder.release()
    return False


def run_demo(*, home: Path, working_dir: Path | None, entrypoint: Sequence[str]) -> int:
    """Runs one demo on a cluster of its own, printing what the job prints, and stops the cluster.

    Args:
        home: absolute output folder; the run is kept in runs/demo-N below it.
        working_dir: folder that is sent to the cluster; the job starts in a copy of it. None: no folder.
        entrypoint: command of the job, without the run's name: `--run.name demo-N` is appended.

    Returns:
        The exit status: 0 done, 1 failed, 2 refused by the job, 130 stopped by Ctrl-C, SIGTERM or SIGHUP.

    Raises:
        UserError: when the cluster or the submission fails.
    """
    with contextlib.ExitStack() as claims:
        return _run(choose_run(home / "runs", claims), home, working_dir, entrypoint)


def _run(run: DemoRun, home: Path, working_dir: Path | None, entrypoint: Sequence[str]) -> int:
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
        print_line(_next_steps(home / "runs" / run.name))
    elif status == _FAILED:
        print(f"{run.name} did not finish. {_continuation(home / 'runs' / run.name)}", flush=True)
    return status


def _continuation(folder: Path) -> str:
    if RunFolder(folder).is_finished():
        return f"{folder.name} is trained: {command('finetune')} --recipe demo --name {folder.name} checks it."
    return f"The same command continues {folder.name}."


def submit_and_follow(
    cluster: LocalCluster,
    *,
    submission_id: str,
    working_dir: Path | None,
    entrypoint: Sequence[str],
    env_vars: dict[str, str],
) -> int:
    """Submits a job, and prints its lines as they come.

    Leaving by an exception, KeyboardInterrupt for one, stops the job first. Returns 0 for a job that succeeded, 2 for
    one whose program refused its input, otherwise 1.

    Raises:
        UserError: when the job could not be submitted.
    """
    # Parts of Ray Train look for "the" cluster of the machine unless this names one.
    runtime_env = {"env_vars": {"RAY_ADDRESS": cluster.address, "PYTHONUNBUFFERED": "1", **env_vars}}
    sent = {"working_dir": str(working_dir)} if working_dir else {}
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.ERROR)  # what it packs and uploads is of no use to a reader of the demo
    with _environment(cluster):
        client = JobSubmissionClient(cluster.dashboard_url)
        try:
            job: dict[str, Any] = {"entrypoint": shlex.join(entrypoint), "submission_id": submission_id}
            submit_job(client.submit_job, **job, runtime_env={**runtime_env, **sent})
            asyncio.run(_print_lines(client.tail_job_logs(submission_id)))
            return _exit_status(client.get_job_info(submission_id))
        except BaseException as error:
            with uninterrupted():
                _stop_job(client, submission_id)
            if isinstance(error, BrokenPipeError) or not isinstance(error, _RAY_FAILURES):
                raise
            raise UserError(
                f"Ray took no job, or lost it ({first_line(error)}); the same command tries again."
            ) from error


@contextlib.contextmanager
def _environment(cluster: LocalCluster) -> Iterator[None]:
    """Gives this process the variables of the cluster's programs: its client reads them."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(cluster.environment())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


async def _print_lines(chunks: AsyncIterator[str]) -> None:
    rest = ""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        for line in lines:
            if not is_routine(line):
                print(line, flush=True)
    if rest:
        print(rest, flush=True)


def is_routine(line: str) -> bool:
    """Tells whether a line of a job's log is one of Ray's own routine messages."""
    return bool(_ROUTINE.match(line))


def _stop_job(client: JobSubmissionClient, submission_id: str) -> None:
    """Waits until the job has ended, too: its program may have something to write down."""
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    # Where there is no such job yet, nothing is lost: the cluster ends next.
    with contextlib.suppress(RuntimeError, OSError):
        client.stop_job(submission_id)
        while not client.get_job_status(submission_id).is_terminal() and time.monotonic() < deadline:
            time.sleep(0.2)


def _exit_status(job: JobDetails) -> int:
    if job.status == JobStatus.SUCCEEDED:
        return 0
    if job.driver_exit_code is None:  # its program was not started, or killed, and printed no reason
        print(f"The job ended as {job.status}: {job.message}", file=sys.stderr)
    return _REFUSED if job.driver_exit_code == _REFUSED else _FAILED


def _next_steps(folder: Path) -> str:
    store = f"sqlite:///{folder.parent.parent}/mlflow.db"
    again, browser = (
        ("make demo", "make mlflow") if job_file() else (command("demo"), f"mlflow ui --backend-store-uri {store}")
    )
    return f"""
Next:
  {browser}
                 shows this run's curves, images and model in a browser
  {again:<13}  starts the next run
  {folder}
                 holds its config, checkpoints, result and final model
Your own images, one folder a class, on a network of your own:
  {command("data prepare")} folder --source IMAGES --output DATA
  {command("finetune")} --recipe custom --data DATA --weights WEIGHTS"""
