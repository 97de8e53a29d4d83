"""One training run on two hosts, with or without a cut of the second host's cable."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.orchestration.processes import uninterrupted
from distributed_autolora.orchestration.run_folder import config_text
from tests.hosts.network import Network
from tests.hosts.raylets import FAST_HEALTH_CHECKS, ROOT, Raylets
from tests.hosts.watching import Event, RunWatch, Timeline, note_logs, training_workers
from tests.training.tasks import small_config, write_task

COLLECTIVE_TIMEOUT_S = 20.0
_EPOCHS = 6
_CUT_AFTER_EPOCH = 2
_CUT_AT = 0.35
_LIMIT_S = 420.0
_ENDING_S = 15.0
_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is done to a run.

    Attributes:
        name: of the run.
        cut_s: seconds without the link; 0: it is never cut.
        head_settings: more environment variables of the Ray head.
        why: what it shows, for the report.
    """

    name: str
    cut_s: float = 0.0
    head_settings: Mapping[str, str] = field(default_factory=dict)
    why: str


SCENARIOS = (
    Scenario(name="uninterrupted", why="what the others must end with"),
    Scenario(name="short-cut", cut_s=6, why="shorter than the collectives' limit and than Ray's health checks"),
    Scenario(
        name="dead-node",
        cut_s=40,
        head_settings=FAST_HEALTH_CHECKS,
        why="the head takes the node for dead; it comes back as a new one",
    ),
    Scenario(
        name="long-cut",
        cut_s=40,
        why="the collectives give up, while to Ray's own health checks (about a minute) the node still lives",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a scenario.

    Attributes:
        status: the driver's exit status; None: it was still there at the limit and was killed.
        seconds: from the driver's start to its end.
        events: what happened when.
        left: processes that outlived the run or its cluster.
        output: the end of what the driver printed.
    """

    status: int | None
    seconds: float
    events: list[Event]
    left: list[str]
    output: str


def write_inputs(folder: Path, train_images: int) -> None:
    """Writes the task and the config that all scenarios run."""
    config = small_config(write_task(folder / "task", train=train_images), epochs=_EPOCHS, global_batch_size=32)
    scaling = replace(
        config.scaling,
        num_workers=2,
        collective_timeout_s=COLLECTIVE_TIMEOUT_S,
        checkpoint_every_s=1.0,
        check_finite_every=5,
    )
    configured: ExperimentConfig = replace(config, scaling=scaling)
    (folder / "config.yaml").write_text(config_text(configured))


def play(scenario: Scenario, folder: Path) -> Outcome:
    """Runs a scenario on hosts and a cluster of its own.

    Args:
        scenario: what to do.
        folder: has the inputs; the run's output goes into its subfolder of the scenario's name.
    """
    own = folder / scenario.name
    own.mkdir()
    timeline = Timeline()
    with Network(("first", "second")) as network:
        with Raylets(*network.hosts, own / "ray", scenario.head_settings, timeline.note) as raylets:
            log = own / "driver.log"
            with log.open("wb") as output:
                command = [sys.executable, "jobs/finetune.py", "--config", str(folder / "config.yaml")]
                command += ["--run.name", "mine", "--run.output", str(own), "--evaluate", "none"]
                timeline.begin()
                driver = subprocess.Popen(
                    network.hosts[0].command(command),
                    cwd=ROOT,
                    env=raylets.environment(network.hosts[0]),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            status = _follow(driver, scenario, network, RunWatch(own / "runs" / "mine", network.hosts, timeline))
            seconds = timeline.now()
            timeline.note(f"the driver ended with status {status}")
            left = _left(network, only_workers=True)
        note_logs(own / "ray", timeline)
        left += _left(network, only_workers=False)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
    return Outcome(status=status, seconds=seconds, events=timeline.events(), left=left, output=tail)


def _follow(driver: subprocess.Popen[bytes], scenario: Scenario, network: Network, watch: RunWatch) -> int | None:
    """Waits for the driver's end, and cuts and mends the link meanwhile; returns its status."""
    timeline, second = watch.timeline, network.hosts[1]
    cut_at = mend_at = None
    try:
        while driver.poll() is None:
            watch.look()
            now = timeline.now()
            if scenario.cut_s and cut_at is None and watch.epochs >= _CUT_AFTER_EPOCH:
                cut_at = now + _CUT_AT * watch.epoch_seconds
                mend_at = cut_at + scenario.cut_s
            if cut_at is not None and now >= cut_at:
                network.cut(second)
                timeline.note(f"**link of the second host cut**, in epoch {watch.epochs + 1}")
                cut_at = float("inf")
            if mend_at is not None and now >= mend_at:
                network.mend(second)
                timeline.note("**link back**")
                mend_at = float("inf")
            if now > _LIMIT_S:
                return None
            time.sleep(_POLL_S)
        watch.look()
        return driver.returncode
    finally:
        with uninterrupted():
            driver.kill()
            driver.wait()


def _left(network: Network, *, only_workers: bool) -> list[str]:
    """Returns the processes still there after a while: training workers, or all."""
    deadline = time.monotonic() + _ENDING_S
    while True:
        found = [
            f"{host.name} host: {title[:120]}"
            for host in network.hosts
            for title in (training_workers(host) if only_workers else host.processes()).values()
        ]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(_POLL_S)
