"""One training run on two hosts, with or without a cut of the second host's cable."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from distributed_autolora.config.experiment import config_text
from distributed_autolora.orchestration.cluster.processes import uninterrupted
from tests.hosts.network import Host, Network
from tests.hosts.raylets import FAST_HEALTH_CHECKS, ROOT, Raylets
from tests.hosts.watching import Event, RunWatch, Timeline, note_logs, training_workers
from tests.training.tasks import small_config, write_task

COLLECTIVE_TIMEOUT_S = 20.0
_EPOCHS = 5
_CUT_AFTER_EPOCH = 2
_CUT_AT = 0.35
_LIMIT_S = 600.0
_ENDING_S = 15.0
_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is done to a run, and what it shows."""

    name: str
    cut_s: float = 0.0
    """Seconds without the link; 0: it is never cut."""
    head_settings: Mapping[str, str] = field(default_factory=dict)
    """More environment variables of the Ray head."""
    why: str


SCENARIOS = (
    Scenario(name="uninterrupted", why="what the others must end with"),
    Scenario(
        name="dead-node",
        cut_s=40,
        head_settings=FAST_HEALTH_CHECKS,
        why="the head takes the node for dead; it comes back as a new one",
    ),
    Scenario(
        name="default-checks",
        cut_s=40,
        why="Ray's own settings: the workers' limit passes long before the head takes the node for dead",
    ),
    Scenario(name="short-cut", cut_s=6, why="shorter than the workers' limit and than Ray's health checks"),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a scenario."""

    status: int | None
    """The driver's exit status; None: it was killed at the time limit."""
    seconds: float
    """From the driver's start to its end."""
    events: list[Event]
    left: list[str]
    """Processes that outlived the run or its cluster."""
    output: str
    """The driver's last lines."""


def write_inputs(folder: Path, train_images: int) -> None:
    """Writes the task and the config that all scenarios run."""
    config = small_config(write_task(folder / "task", train=train_images), epochs=_EPOCHS, global_batch_size=32)
    # It learns all the while, so that the model it ends with is one of an epoch after the cut.
    config = replace(
        config,
        threat_model=replace(config.threat_model, epsilon=0.01),
        train_attack=replace(config.train_attack, step_size=0.005),
        eval_attack=replace(config.eval_attack, step_size=0.005),
        schedule=replace(config.schedule, name="step_decay"),
        optimization=replace(config.optimization, lr=0.03),
    )
    scaling = replace(config.scaling, num_workers=2, checkpoint_every_s=1.0, check_finite_every=5)
    scaling = replace(scaling, collective_timeout_s=COLLECTIVE_TIMEOUT_S)
    (folder / "config.yaml").write_text(config_text(replace(config, scaling=scaling)))


def play(scenario: Scenario, folder: Path) -> Outcome:
    """Runs a scenario on hosts and a cluster of its own, from the inputs in the folder."""
    own = folder / scenario.name
    own.mkdir()
    timeline = Timeline()
    of_ray = folder / f"ray{SCENARIOS.index(scenario)}"
    with Network(("first", "second")) as network:
        with Raylets(network.hosts, of_ray, scenario.head_settings, timeline.note) as raylets:
            timeline.begin()
            driver = _start_driver(folder / "config.yaml", own, network.hosts[0], raylets)
            watch = RunWatch(own / "runs" / "mine", network.hosts, timeline)
            status = _follow(driver, _Cable(network, scenario.cut_s, watch), watch)
            seconds = timeline.now()
            timeline.note(f"the driver ended with status {status}")
            left = _left(network, only_workers=True)
        note_logs(of_ray, timeline)
        left += _left(network, only_workers=False)
    tail = "\n".join((own / "driver.log").read_text(errors="replace").splitlines()[-12:])
    return Outcome(status=status, seconds=seconds, events=timeline.events(), left=left, output=tail)


def _start_driver(config: Path, home: Path, host: Host, raylets: Raylets) -> subprocess.Popen[bytes]:
    command = [sys.executable, "jobs/finetune.py", "--config", str(config)]
    command += ["--run.name", "mine", "--run.output", str(home), "--evaluate", "none"]
    with (home / "driver.log").open("wb") as output:
        return host.start(command, raylets.environment(host), ROOT, output)


class _Cable:
    """Cuts the second host's link in the middle of an epoch, once, and restores it after its time."""

    def __init__(self, network: Network, cut_s: float, watch: RunWatch) -> None:
        self._network, self._cut_s, self._watch = network, cut_s, watch
        self._due = [network.cut, network.restore] if cut_s else []
        self._at: float | None = None

    def act(self) -> None:
        """Cuts or restores the link if it is time."""
        timeline, watch = self._watch.timeline, self._watch
        if self._at is None and watch.epochs >= _CUT_AFTER_EPOCH:
            self._at = timeline.now() + _CUT_AT * watch.epoch_seconds
        if self._due and self._at is not None and timeline.now() >= self._at:
            is_cut = len(self._due) == 2
            self._due.pop(0)(self._network.hosts[1])
            epoch = watch.epochs + 1
            timeline.note(f"**link of the second host cut**, in epoch {epoch}" if is_cut else "**link back**")
            self._at = timeline.now() + self._cut_s


def _follow(driver: subprocess.Popen[bytes], cable: _Cable, watch: RunWatch) -> int | None:
    """Waits for the driver's end, and cuts and restores the link meanwhile; returns its status."""
    try:
        while driver.poll() is None:
            watch.look()
            cable.act()
            if watch.timeline.now() > _LIMIT_S:
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
