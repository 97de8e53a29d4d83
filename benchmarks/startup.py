"""Measures the seconds from the command to the first training step of the demo's recipe, part by part.

    python benchmarks/startup.py                  # typed directly, and as a job on a running cluster
    python benchmarks/startup.py --ways job --runs 3

Each start is a run of one epoch in an output folder of its own. The beginning of each part is read from the logs of the
package and of Ray Train.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout has no package "benchmarks"

from benchmarks.timing import BenchmarkFlags, run_benchmark, table
from distributed_autolora.hardware import available_cpus
from distributed_autolora.orchestration.cluster.local_cluster import LocalCluster
from distributed_autolora.orchestration.demo import submit_and_follow

REPOSITORY = Path(__file__).resolve().parent.parent
Way = Literal["direct", "job"]

FIRST_STEP = "the first training step"
TYPED = "Python starts; for a job: it is submitted, sent, accepted"
# Beginnings of log lines, and what begins there. The controller's and the workers' are Ray Train's, but for the last.
MOMENTS = {
    "Python begins.": "the package's flags are read",
    "Finding the inputs.": "PyTorch is imported; data and weights are found",
    "Checking the inputs.": "all images are decoded, the model is built once",
    "Connecting to Ray.": "Ray starts, or is joined by a job; MLflow is imported, its store made",
    "Waiting for resources.": "the cluster's CPUs are asked for; MLflow is waited for",
    "Opening the MLflow run.": "the MLflow run is opened",
    "Handing over to Ray Train.": "Ray Train's controller starts",
    "Attempting to start training worker group": "the workers' processes start",
    "[Worker Group Initialization] before_init_train_context": "the workers import Ray Train and PyTorch",
    "Setting up process group": "the workers find each other, and import what trains",
    "Opening the data.": "the workers read the images",
    "Building the network.": "the workers build network, optimizer and attack network",
    "Epoch 1 begins.": "the accuracy to begin with is measured",
    "Epoch 1: steps begin.": FIRST_STEP,
}
_FLAGS = ("--recipe", "demo", "--optimization.epochs", "1", "--evaluation.no-test-split", "--evaluate", "none")


@dataclass(frozen=True, kw_only=True)
class Flags(BenchmarkFlags):
    """What to measure."""

    ways: tuple[Way, ...] = ("direct", "job")
    """direct: python jobs/finetune.py; job: ray job submit to a cluster that is up, whose start is not counted."""
    runs: int = 1
    """Starts of each, in turn."""


def measure(flags: Flags) -> dict[str, Any]:
    """Returns everything that is written."""
    os.environ["OMP_NUM_THREADS"] = "1"
    starts = [(way, _start(way)) for _ in range(flags.runs) for way in flags.ways]
    return {way: summary([found for other, found in starts if other == way]) for way in flags.ways}


def show(result: dict[str, Any]) -> None:
    """Prints a table a way to start."""
    for way, found in result.items():
        title = f"{way}: {found['seconds_to_the_first_step']:.1f} s to the first training step"
        print(f"\n{table(title, {part: {'seconds': seconds} for part, seconds in found['seconds'].items()})}")


def summary(starts: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Returns the medians over some starts (seconds by part) of the seconds to the first step and of every part."""
    parts = {part: statistics.median(start[part] for start in starts) for part in starts[0]}
    totals = [sum(start.values()) for start in starts]
    return {"seconds_to_the_first_step": statistics.median(totals), "of_each_start": totals, "seconds": parts}


def parts_of(typed: float, lines: Iterable[str]) -> dict[str, float]:
    """Returns the seconds of each part of a start, in their order; of several workers, the last counts.

    `typed` is the UNIX time of the command, `lines` are the JSON lines of all logs in any order.
    """
    moments: dict[str, float] = {}
    for line in lines:
        record = json.loads(line)
        for beginning, what in MOMENTS.items():
            if str(record["message"]).startswith(beginning):
                moment = datetime.strptime(record["asctime"], "%Y-%m-%d %H:%M:%S,%f").timestamp()
                moments[what] = max(moment, moments.get(what, 0.0))
    if FIRST_STEP not in moments:
        raise ValueError(f"the logs end before the first step, after: {list(moments)}")
    begins = [(TYPED, typed), *sorted(moments.items(), key=lambda item: item[1])]
    return {what: then - start for (what, start), (_, then) in pairwise(begins) if what != FIRST_STEP}


def _start(way: Way) -> dict[str, float]:
    # Sockets live in there, and their paths may have 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="dal-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        driver = str(REPOSITORY / "benchmarks/startup_driver.py")
        program = [driver, f"{folder}/driver.log", "jobs/finetune.py", *_FLAGS]
        start = _start_directly if way == "direct" else _start_job
        typed, lines = start(Path(folder), program)
        lines += Path(folder, "driver.log").read_text().splitlines()
    return parts_of(typed, lines)


def _start_directly(folder: Path, program: Sequence[str]) -> tuple[float, list[str]]:
    """Returns when the program was started, and the lines of Ray Train's logs."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {"DISTRIBUTED_AUTOLORA_HOME": str(folder), "RAY_TMPDIR": str(folder)}
    typed = time.time()
    subprocess.run([sys.executable, *program], cwd=REPOSITORY, env=environment, stdout=sys.stderr, check=True)
    return typed, _train_logs(folder / "ray")


def _start_job(folder: Path, program: Sequence[str]) -> tuple[float, list[str]]:
    """As `_start_directly`, for a job."""
    with LocalCluster(num_cpus=max(2, available_cpus())) as cluster, contextlib.redirect_stdout(sys.stderr):
        typed = time.time()
        status = submit_and_follow(
            cluster,
            submission_id="start",
            working_dir=REPOSITORY,
            entrypoint=["python", *program],
            env_vars={"DISTRIBUTED_AUTOLORA_HOME": str(folder), "OMP_NUM_THREADS": "1"},
        )
        if status:
            raise SystemExit(f"The job ended with status {status}.")
        return typed, _train_logs(cluster.folder)


def _train_logs(ray: Path) -> list[str]:
    patterns = ("ray-train-sys-*.log", "*app-worker*.log")
    files = [file for pattern in patterns for file in ray.glob(f"session_2*/logs/train/{pattern}")]
    return [line for file in files for line in file.read_text().splitlines()]


if __name__ == "__main__":
    run_benchmark(Flags, __doc__, measure, show)
