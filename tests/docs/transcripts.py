"""Makes the transcripts of the tutorials again: `make transcripts`, or `python -m tests.docs.transcripts PAGE.md ...`.

Everything on a page runs in its order, in a copy of this repository in a home folder of its own:

- a `python` block runs, or is written to the file that its first line names (`# FILE.py`); a `diff` block is applied;
- a command behind `$ ` in a `console` block runs in a shell, and what it prints replaces the lines below it.

Below a command, a line `...` leaves lines out: as many as are before the first and after the last `...` are kept. A
line `^C` interrupts the command once it has printed a line that begins with the same word as the line above it.

A line of more than 120 characters is wrapped. The home folder is printed as /home/you, a time as M:SS, images per
second as N and the id of a job as ID. Lines about the step within an epoch, which only slow machines print, are
dropped. A page that submits jobs to http://127.0.0.1:8265 gets a Ray cluster of its own, which is printed as that
address.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_autolora.orchestration.cluster.local_cluster import LocalCluster

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
HOME = "/home/you"
ADDRESS = "http://127.0.0.1:8265"
_BLOCK = re.compile(r"^```(console|python|diff)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^(\$ (?:.*\\\n)*.*\n)((?:(?!\$ ).*\n)*)", re.MULTILINE)
_LEFT_OUT, _INTERRUPT = "...", "^C"
_TIMEOUT_S = 1200
_WIDTH = 120
_AS_IT_IS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False, "replace_whitespace": False}
_VARYING = (
    (re.compile(r"(\d+)(  )\d+:\d\d( left)"), lambda found: f"{'N':>{len(found[1])}}{found[2]}M:SS{found[3]}"),
    (re.compile(r"\b\d+(?::\d\d){1,2}\b"), lambda _: "M:SS"),
    (re.compile(r"(?m)^epoch \d+ of \d+: step .*\n"), lambda _: ""),
    (re.compile(r"\b\d+ images/s"), lambda _: "N images/s"),
    (re.compile(r"( passed.* in )[\d.]+s.*"), lambda found: f"{found[1]}N s"),
    (re.compile(r"raysubmit_\w+"), lambda _: "raysubmit_ID"),
)


@dataclass(frozen=True)
class Place:
    """Where the commands of a page run."""

    home: Path
    address: str = ADDRESS
    environment: Mapping[str, str] | None = None

    @property
    def folder(self) -> Path:
        """The copy of the repository."""
        return self.home / "autolora"

    def run(self, words: list[str], interrupt_after: str | None = None) -> str:
        """Returns all that a process prints; it is interrupted after a line that begins with this word."""
        words = [word.replace(HOME, str(self.home)).replace(ADDRESS, self.address) for word in words]
        own = {"DISTRIBUTED_AUTOLORA_HOME": str(self.home / "distributed_autolora"), "PYTHONPATH": str(self.folder)}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        fixed = {"PATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "80", "TERM": "dumb", "OMP_NUM_THREADS": "1"}
        # A background process of a shell ignores interrupts, and so would what it starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # A file: a program that outlives the command would keep a pipe open.
        with tempfile.NamedTemporaryFile("a") as output:
            printed = Path(output.name)
            process = subprocess.Popen(
                words,
                cwd=self.folder,
                env={**(self.environment or os.environ), **fixed, **own},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            deadline = time.monotonic() + _TIMEOUT_S
            while process.poll() is None:
                time.sleep(0.1)
                begun = [line.split()[0] for line in printed.read_text().splitlines() if line.strip()]
                if interrupt_after in begun:
                    interrupt_after = None
                    os.killpg(process.pid, signal.SIGINT)
                if time.monotonic() > deadline:
                    os.killpg(process.pid, signal.SIGTERM)
                    raise TimeoutError(f"{words} ran for more than {_TIMEOUT_S} s")
            return self.normal(printed.read_text())

    def normal(self, text: str) -> str:
        """Returns the text without what differs from one time to the next."""
        text = text.replace(str(self.home), HOME).replace(self.address, ADDRESS)
        for pattern, replacement in _VARYING:
            text = pattern.sub(replacement, text)
        return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def remade(page: str, place: Place) -> str:
    """Returns a page with the output of its commands as they print it now.

    Raises:
        ValueError: for a `python` or `diff` block that fails, or a command that prints less than the page keeps of it.
    """
    return _BLOCK.sub(lambda block: _remade_block(block[1], block[2], place), page)


def _remade_block(kind: str, text: str, place: Place) -> str:
    if kind == "console":
        text = _COMMAND.sub(lambda found: found[1] + _remade_output(found[1], found[2], place), text)
    elif named := re.match(r"# (\S+\.py)\n", text):
        (place.folder / named[1]).write_text(text.partition("\n")[2])
    else:
        words = [sys.executable, "-c", text] if kind == "python" else ["bash", "-c", f"patch -p1 <<'END'\n{text}END"]
        done = place.run(["bash", "-c", '"$@" || echo failed', "-", *words])
        if done.endswith("failed\n"):
            raise ValueError(f"{text}\n{done}")
    return f"```{kind}\n{text}```"


def _remade_output(command: str, before: str, place: Place) -> str:
    lines = before.splitlines()
    cut = lines.index(_INTERRUPT) if _INTERRUPT in lines else None
    text = place.run(["bash", "-c", command[2:]], lines[cut - 1].split()[0] if cut else None)
    printed = [part for line in text.splitlines() for part in textwrap.wrap(line, _WIDTH, **_AS_IT_IS) or [""]]
    if cut:
        word = lines[cut - 1].split()[0]
        place_of_it = next((n for n, line in enumerate(printed) if line.split()[:1] == [word]), len(printed))
        printed.insert(place_of_it + 1, _INTERRUPT)
    if _LEFT_OUT in lines:
        head, tail = lines.index(_LEFT_OUT), lines[::-1].index(_LEFT_OUT)
        if head + tail > len(printed):
            raise ValueError(f"{command}prints fewer lines than the page keeps:\n" + "\n".join(printed))
        printed = [*printed[:head], _LEFT_OUT, *printed[len(printed) - tail :]]
    return "".join(f"{line}\n" for line in printed)


@contextmanager
def place_for(page: str) -> Iterator[Place]:
    """Makes the folders, and the cluster if the page needs one; removes them again."""
    home = Path(tempfile.mkdtemp(prefix="you-"))
    place = Place(home)
    try:
        names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, names.split("\0")):
            (place.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place.folder / name)
        if not any(kind == "console" and ADDRESS in text for kind, text in _BLOCK.findall(page)):
            yield place
            return
        with LocalCluster(num_cpus=2) as cluster:
            yield Place(home, cluster.dashboard_url, cluster.environment())
    finally:
        shutil.rmtree(home, ignore_errors=True)


def main() -> None:
    """Remakes the given pages, or all tutorials."""
    for path in [Path(name) for name in sys.argv[1:]] or PAGES:
        print(f"{path} ...", flush=True)
        page = path.read_text()
        with place_for(page) as place:
            path.write_text(remade(page, place))


if __name__ == "__main__":
    main()
