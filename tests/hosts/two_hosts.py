"""Trains with two workers on two hosts, cuts the link between them and puts it back, and compares what comes out.

    sudo .venv/bin/python tests/hosts/two_hosts.py --output docs/results/two-hosts

The hosts are network namespaces of this machine with addresses of their own. Nothing outside them is touched, and all
is removed at the end. Ends with status 1 when a run came to other results than the uninterrupted one.
"""

import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a plain checkout has no package "tests"

from distributed_autolora.cli import run_program
from distributed_autolora.config.experiment import config_text
from distributed_autolora.errors import RunFailedError
from distributed_autolora.orchestration.cluster.processes import uninterrupted
from distributed_autolora.orchestration.runs.folder import RunFolder
from tests.chaos.nodes import FAST_HEALTH_CHECKS, Nodes
from tests.hosts.comparing import compare, run_folder
from tests.hosts.network import INTERFACE, Host, Network
from tests.hosts.report import Played, Scenario, as_markdown
from tests.programs import ROOT, environment
from tests.training.tasks import small_config, write_task

SCENARIOS = (
    Scenario(name="uninterrupted", why="what the others must end with"),
    Scenario(
        name="dead-node",
        cut_s=40,
        settings=FAST_HEALTH_CHECKS,
        why="the head takes the node for dead; it comes back as a new one",
    ),
    Scenario(
        name="default-checks",
        cut_s=40,
        why="Ray's own settings: the workers' limit passes long before the head takes the node for dead",
    ),
    Scenario(name="short-cut", cut_s=6, why="shorter than the workers' limit and than Ray's health checks"),
)
COLLECTIVE_TIMEOUT_S = 20.0
_CUT_AFTER_EPOCH, _CUT_AT = 2, 0.35
_LIMIT_S, _ENDING_S, _POLL_S = 600.0, 15.0, 0.2


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What to play, and where to write."""

    output: Path | None = None
    """Folder for report.md; None: the report is only printed."""
    only: tuple[str, ...] = ()
    """Names of scenarios to play beside the uninterrupted run; none: all."""
    train_images: int = 600
    """Images of the synthetic task: an epoch must last some seconds, so that it can be cut in its middle."""
    keep: bool = False
    """Leave the runs' folders and Ray's logs where they are, and print where."""


def main() -> None:
    flags = tyro.cli(Annotated[Flags, tyro.conf.arg(name="")], description=__doc__)
    folder = Path(tempfile.mkdtemp(prefix="hosts-", dir="/tmp"))  # short: UNIX sockets live in there
    try:
        _write_inputs(folder, flags.train_images)
        played: list[Played] = []
        for scenario in SCENARIOS:
            if scenario is SCENARIOS[0] or not flags.only or scenario.name in flags.only:
                print(f"{scenario.name} ...", file=sys.stderr, flush=True)
                played.append(_play(scenario, folder))
                if played[0].status != 0:
                    raise RunFailedError(f"The uninterrupted run ended with {played[0].status}: {played[0].output}")
    finally:
        if flags.keep:
            print(f"Everything is in {folder}.", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    report = as_markdown(played, flags.train_images, COLLECTIVE_TIMEOUT_S)
    print(report)
    if flags.output is not None:
        flags.output.mkdir(parents=True, exist_ok=True)
        (flags.output / "report.md").write_text(report)
    failed = [each.scenario.name for each in played if not each.is_good]
    if failed:
        raise RunFailedError(f"Not as the uninterrupted run: {', '.join(failed)}.")


def _write_inputs(folder: Path, train_images: int) -> None:
    config = small_config(write_task(folder / "task", train=train_images), epochs=5, global_batch_size=32)
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


def _play(scenario: Scenario, folder: Path) -> Played:
    """Runs a scenario on hosts and a cluster of its own, from the inputs in the folder."""
    own, of_ray = folder / scenario.name, folder / f"ray{SCENARIOS.index(scenario)}"
    own.mkdir()
    of_ray.mkdir()
    with Network(("first", "second")) as network:
        # The name of this machine is an address of loopback, as on many machines: gloo would offer it to peers.
        settings = environment(own, RAY_AUTH_MODE="disabled", GLOO_SOCKET_IFNAME=INTERFACE)
        settings = {key: value for key, value in settings.items() if not key.lower().endswith("_proxy")}
        events: list[tuple[float, str]] = []
        began = time.monotonic()

        def note(what: str) -> None:
            events.append((time.monotonic() - began, what))

        nodes = Nodes(of_ray, 1, settings, settings=scenario.settings, hosts=network.hosts, note=note)
        command = [*network.hosts[0].prefix, sys.executable, "jobs/finetune.py", "--run.name", "mine"]
        command += ["--config", str(folder / "config.yaml"), "--evaluate", "none"]
        log = own / "driver.log"
        began = time.monotonic()
        with log.open("wb") as output:
            settings |= {"RAY_ADDRESS": nodes.address}
            driver = subprocess.Popen(command, env=settings, cwd=ROOT, stdout=output, stderr=output)
        try:
            status = _follow(driver, network, scenario.cut_s, RunFolder(run_folder(own)), note)
            seconds = time.monotonic() - began
            note(f"the driver ended with status {status}")
            left = _left(network.hosts, "ray::RayTrainWorker")
        finally:
            nodes.close()
        left += _left(network.hosts, "")
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
    verdicts = compare(folder / SCENARIOS[0].name, own) if status == 0 else []
    return Played(scenario, status, seconds, events, left, tail, verdicts)


def _follow(
    driver: subprocess.Popen[bytes], network: Network, cut_s: float, run: RunFolder, note: Callable[[str], None]
) -> int | None:
    """Waits for the driver's end; cuts the second host's link in the middle of an epoch and restores it later.

    Returns its status.
    """
    due = [network.cut, network.restore] if cut_s else []
    limit, at, epochs = time.monotonic() + _LIMIT_S, math.inf, 0
    try:
        while driver.poll() is None and time.monotonic() < limit:
            for record in run.history()[epochs:]:
                note(f"epoch {record.epoch} recorded ({record.epoch_seconds:.1f} s of work)")
                epochs = record.epoch
                if epochs == _CUT_AFTER_EPOCH and len(due) == 2:
                    at = time.monotonic() + _CUT_AT * record.epoch_seconds
            if due and time.monotonic() >= at:
                note(f"**link of the second host cut**, in epoch {epochs + 1}" if len(due) == 2 else "**link back**")
                due.pop(0)(network.hosts[1])
                at = time.monotonic() + cut_s
            time.sleep(_POLL_S)
        return driver.poll()
    finally:
        with uninterrupted():
            driver.kill()
            driver.wait()


def _left(hosts: Sequence[Host], title: str) -> list[str]:
    """Returns the processes with such a title that are still there after a while."""
    deadline = time.monotonic() + _ENDING_S
    while True:
        found = [
            f"{host.name} host: {own[:120]}"
            for host in hosts
            for own in host.processes().values()
            if own.startswith(title)
        ]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(_POLL_S)


if __name__ == "__main__":
    run_program(main, when_interrupted="The hosts are gone.")
