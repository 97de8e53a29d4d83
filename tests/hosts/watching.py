"""What happened at which second: to the run's files, to the workers' processes, and in Ray's own logs."""

import json
import re
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from distributed_autolora.orchestration.runs.folder import RunFolder
from tests.hosts.network import Host
from tests.programs import ROOT

# What Ray Train's controller and the workers log, and how the report says it, with the pattern's groups in it.
_LOGGED = (
    (re.compile(r"Started training worker group of size \d+:\s*(.*)", re.S), "worker group: {}"),
    (
        re.compile(r"\[FailurePolicy\] (\w+)\s+Source: (.+?)\n\s*Error count: (.+?)\nError: (.+)", re.S),
        "Ray Train decides {}; source: {}; error {}: {}",
    ),
    (re.compile(r"(Epoch \d+ resumes after step \d+)"), "workers: {}"),
    (re.compile(r"death message = (health check failed.*?) node_id"), "the head takes the node for dead: {}"),
    (re.compile(r"(Exiting because this node manager has mistakenly been marked as dead by the GCS)"), "raylet: {}"),
)
_RAY_LINE = re.compile(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) \w [\d ]+\] (.*)")
_LONGEST = 300


class RunWatch:
    """Notes what changes in a run's folder and among the hosts' training workers."""

    def __init__(self, run: Path, hosts: list[Host]) -> None:
        self._run, self._hosts = run, hosts
        self._origin = time.time()
        self._workers = ""
        self.events: list[tuple[float, str]] = []
        self.epochs, self.epoch_seconds = 0, 0.0
        """Number of epochs recorded so far, and the duration of the last one."""

    def begin(self) -> None:
        """Counts from now."""
        self._origin = time.time()

    def now(self) -> float:
        """Returns the seconds since the beginning."""
        return time.time() - self._origin

    def note(self, what: str) -> None:
        """Adds an event that happens now."""
        self.events.append((self.now(), what))

    def look(self) -> None:
        """Notes what has changed since the last look."""
        history = RunFolder(self._run).history()
        for record in history[self.epochs :]:
            self.note(f"epoch {record.epoch} recorded ({record.epoch_seconds:.1f} s of work)")
            self.epoch_seconds = record.epoch_seconds
        self.epochs = len(history)
        workers = ", ".join(f"{host.name} host {len(training_workers(host))}" for host in self._hosts)
        if workers != self._workers:
            self.note(f"training workers: {workers}")
        self._workers = workers

    def note_logs(self, folder: Path) -> None:
        """Adds what Ray Train's controller and the workers wrote into the hosts' logs, each message once a second."""
        noted: dict[str, float] = {}
        for clock, logged in sorted(_logged(folder)):
            for pattern, text in _LOGGED:
                found = pattern.search(logged.replace(f"{ROOT}/", ""))
                what = text.format(*(" ".join(group.split()) for group in found.groups())) if found else ""
                if found and clock - noted.get(what, 0.0) > 1:
                    shown = what if len(what) <= _LONGEST else f"{what[:_LONGEST]} ..."
                    self.events.append((clock - self._origin, shown))
                    noted[what] = clock


def training_workers(host: Host) -> list[str]:
    """Returns the training workers' processes on a host."""
    return [title for title in host.processes().values() if title.startswith("ray::RayTrainWorker")]


def _logged(folder: Path) -> Iterator[tuple[float, str]]:
    """Returns time in seconds since the epoch, and text, of every message in the logs of Ray Train and Ray itself."""
    for log in folder.glob("*/session_2*/logs/train/*.log"):
        for line in log.read_text(errors="replace").splitlines():
            record = json.loads(line) if line.startswith("{") and line.endswith("}") else {}
            if "asctime" in record:
                yield _clock(record["asctime"]), str(record["message"])
    for log in folder.glob("*/session_2*/logs/*.out"):
        for line in log.read_text(errors="replace").splitlines():
            if found := _RAY_LINE.match(line):
                yield _clock(found.group(1)), found.group(2)


def _clock(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S,%f").timestamp()
