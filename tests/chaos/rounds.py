"""One run that is killed repeatedly, and restarted with the same command."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from distributed_autolora import __version__
from distributed_autolora.config import ExperimentConfig
from distributed_autolora.config.experiment import config_text
from distributed_autolora.orchestration.runs.folder import RunFolder
from tests.chaos.kills import Victim, kill_all, kill_one, plan, processes, registered, wait_for
from tests.chaos.nodes import Nodes
from tests.hosts.comparing import Verdict, compare, run_folder
from tests.orchestration.mlflow_tracking.tracking_server import TrackingServer
from tests.programs import ROOT, below, environment

Place = Literal["one machine", "three nodes", "tracking server", "nodes come and go"]
ELASTIC: Place = "nodes come and go"

VICTIMS: dict[Place, tuple[Victim, ...]] = {
    "one machine": ("worker", "worker", "worker", "worker", "controller", "driver", "hung worker"),
    "three nodes": ("worker", "worker", "node", "node", "controller", "driver"),
    "tracking server": ("worker", "worker", "worker", "tracking server", "tracking server", "driver"),
}
SIGTERM, TWICE = "driver, by SIGTERM", "a second driver"
"""What happens to a driver while Ray starts."""
NEW_NODE = "a new node"
"""Joins where one was killed for good."""
_ENDS_S, _LONGEST_S, _EVERY_S = 30.0, 1800.0, 0.05


@dataclass(frozen=True)
class Round:
    """One run with its kills, JSON values."""

    place: str
    num_workers: int
    version: str
    """Of distributed_autolora."""
    seconds: float
    kills: list[dict[str, Any]]
    statuses: list[int]
    verdicts: list[dict[str, Any]]

    @property
    def is_equal(self) -> bool:
        return all(verdict["is_equal"] for verdict in self.verdicts)


class FaultInjection:
    """Runs a config without a name once without faults and often with faults, in a folder of short path."""

    def __init__(self, config: ExperimentConfig, folder: Path) -> None:
        self._config, self._folder = config, folder

    def uninterrupted(self, num_workers: int) -> Path:
        """Returns the home of an uninterrupted run; it is made once."""
        home = self._folder / f"plain-{num_workers}"
        if not (run_folder(home) / "result.json").exists():
            place: Place = "three nodes" if num_workers > 2 else "one machine"
            faulty = FaultyRun(self._config, home, place, num_workers, 1e9)
            try:
                if not faulty.supervise():
                    raise RuntimeError(f"{home}: the uninterrupted run did not end")
            finally:
                faulty.close()
        return home

    def run(self, place: Place, num_workers: int, most_kills: int, name: str, chance: random.Random) -> Round:
        """Runs once with faults and compares with the uninterrupted run; `chance` draws victims and moments."""
        expected = self.uninterrupted(num_workers)
        every_s = chance.choice((0.0, 1.0))
        faulty = FaultyRun(self._config, self._folder / name, place, num_workers, every_s)
        began = time.monotonic()
        try:
            has_ended = faulty.supervise(chance, most_kills)
            verdicts = [faulty.orphans(), faulty.unregistered()] if has_ended else []
        finally:
            faulty.close()
        if has_ended:
            verdicts = [*compare(expected, faulty.home), *verdicts, faulty.restarts(), faulty.starts()]
        verdicts.append(Verdict("the run ends", has_ended, f"looked for {_LONGEST_S:.0f} s"))
        seen = [verdict._asdict() for verdict in verdicts]
        seconds = time.monotonic() - began
        return Round(place, num_workers, __version__, seconds, faulty.kills, faulty.statuses, seen)


class FaultyRun:
    """A run's driver, what it needs around it, and what kills them."""

    def __init__(self, config: ExperimentConfig, home: Path, place: Place, num_workers: int, every_s: float) -> None:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        self.home, self.place = home, place
        self.kills: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        self._at_start: list[tuple[str, int]] = []
        self._mark = f"DISTRIBUTED_AUTOLORA_HOME={home}"
        self._began = time.monotonic()
        self._server = TrackingServer(home) if place == "tracking server" else None
        scaling = replace(config.scaling, num_workers=num_workers, checkpoint_every_s=every_s)
        run = replace(config.run, mlflow_uri=self._server.uri if self._server else None)
        (home / "config.yaml").write_text(config_text(replace(config, scaling=scaling, run=run)))
        self._driver: subprocess.Popen[bytes] | None = None
        self.nodes: Nodes | None = None
        if self._server is not None:
            self._server.start()
        if place in ("three nodes", ELASTIC):
            self.nodes = Nodes(home, 2, self._environment(), head_cpus=int(place != ELASTIC))

    def supervise(self, chance: random.Random | None = None, most_kills: int = 0) -> bool:
        """Starts the driver until a run has ended well, and kills meanwhile; tells whether one has."""
        deadline, has_result = time.monotonic() + _LONGEST_S, False
        while True:
            driver = self._driver = self._start_driver()
            if chance is not None and len(self.kills) < most_kills and not has_result:
                driver = self._driver = self._disturb_start(chance, driver)
            while driver.poll() is None and time.monotonic() < deadline:
                if chance is not None and len(self.kills) < most_kills and not has_result:
                    self._strike(chance, driver)
                else:
                    time.sleep(0.1)
            if time.monotonic() >= deadline:
                return False
            self.statuses.append(driver.returncode)
            has_result = driver.returncode == 0
            # A run whose tracking server was away at its end asks for the same command, once the server is back.
            if has_result and json.loads((run_folder(self.home) / "result.json").read_text())["tracked"]:
                return True

    def orphans(self) -> Verdict:
        deadline = time.monotonic() + _ENDS_S
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return Verdict("no process is left", not left, ", ".join(title.decode()[:40] for title in left) or "none")

    def unregistered(self) -> Verdict:
        run = run_folder(self.home)
        extra = sorted({folder.name for folder in (run / "train").glob("checkpoint_*/")} ^ registered(run))
        return Verdict("checkpoints are those on Ray Train's list", not extra, ", ".join(extra) or "none besides")

    def restarts(self) -> Verdict:
        """Looks for drivers that ended for another reason than a kill.

        A worker that dies just as its group starts ends its driver, because Ray Train restarts no group then; so does a
        tracking server that is away when the driver starts.
        """
        ended = sum(status != 0 for status in self.statuses)
        kills = sum(kill["victim"] != TWICE for kill in self.kills)
        return Verdict("the command was typed again for no other reason", ended <= kills, f"{ended} of {kills}")

    def starts(self) -> Verdict:
        """Looks at how drivers ended that got SIGTERM while Ray started, or whose run another one had."""
        ends = all(status == (130 if what == SIGTERM else 2) for what, status in self._at_start)
        return Verdict("SIGTERM ends a start with 130, a second driver ends with 2", ends, str(self._at_start))

    def _left(self) -> list[bytes]:
        titles = [title for _, title in processes(self._mark)]
        own = (b"ray::RayTrain", b"ray::TrainController", b"finetune.py")
        return [title for title in titles if self.nodes is None or any(one in title for one in own)]

    def close(self) -> None:
        """Ends what is around the run; what is still there of the run itself is for `orphans` to see."""
        if self._driver is not None and self._driver.poll() is None:
            kill_all(self._mark)
        if self.nodes is not None:
            self.nodes.close()
        if self._server is not None:
            self._server.kill()

    def _disturb_start(self, chance: random.Random, driver: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        """Sometimes sends SIGTERM while Ray starts, or starts a second driver; returns the one that goes on."""
        what = chance.choice(("", "", TWICE, TWICE if self.nodes else SIGTERM))
        if what == TWICE:
            time.sleep(chance.uniform(0.0, 5.0))
            both = [driver, self._start_driver()]
            while all(one.poll() is None for one in both):
                time.sleep(0.1)
            ended = next(one for one in both if one.poll() is not None)
            driver = both[1 - both.index(ended)]
        elif what == SIGTERM:
            # Before Python has started the system's own handler ends it.
            while driver.poll() is None and not self._has_started_ray(driver):
                time.sleep(_EVERY_S)
            time.sleep(chance.uniform(0.0, 3.0))
            driver.send_signal(signal.SIGTERM)
            ended = driver
        if what:
            self._at_start.append((what, ended.wait(_LONGEST_S)))
            self._note(what, "while Ray starts")
        return driver

    def _has_started_ray(self, driver: subprocess.Popen[bytes]) -> bool:
        own = below(driver.pid)
        return any(pid in own and b"gcs_server" in title for pid, title in processes(self._mark))

    def _strike(self, chance: random.Random, driver: subprocess.Popen[bytes]) -> None:
        planned = plan(chance, run_folder(self.home))
        if not wait_for(planned, lambda: driver.poll() is not None):
            return
        victim = chance.choice(VICTIMS[self.place])
        if not self._kill(victim, chance, driver):
            return
        self._note(victim, planned.moment)

    def _note(self, victim: str, moment: str) -> None:
        epochs = len(RunFolder(run_folder(self.home)).history())
        second = round(time.monotonic() - self._began, 1)
        self.kills.append({"victim": victim, "moment": moment, "second": second, "epochs": epochs})

    def _kill(self, victim: Victim, chance: random.Random, driver: subprocess.Popen[bytes]) -> bool:
        if victim == "driver":
            driver.send_signal(signal.SIGKILL)
        elif victim == "node":
            assert self.nodes is not None
            self.nodes.kill(1 + chance.randrange(2))
        elif victim == "tracking server":
            assert self._server is not None
            self._server.kill()
            time.sleep(chance.uniform(0.0, 8.0))
            self._server.start()
        else:
            return kill_one(self._mark, victim, chance)
        return True

    def _start_driver(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "jobs/finetune.py", "--config", str(self.home / "config.yaml")]
        command += ["--run.name", "mine", "--evaluate", "none"]
        with (self.home.parent / f"{self.home.name}.log").open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, env=self._environment(), stdout=log, stderr=log)

    def _environment(self) -> dict[str, str]:
        address = {"RAY_ADDRESS": self.nodes.address} if self.nodes is not None else {}
        more = {"RAY_AUTH_MODE": "disabled"}
        if self.place != ELASTIC:
            more["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "60"
        return environment(self.home, **address, **more)
