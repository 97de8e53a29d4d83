"""Programs that tests start in processes of their own."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def environment(home: Path, **more: str) -> dict[str, str]:
    """Returns the environment of a program of this checkout with its output in `home`, without settings of Ray."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    own = {"PYTHONPATH": str(ROOT), "DISTRIBUTED_AUTOLORA_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return kept | own | {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"} | more


def program(
    *words: object, cwd: Path = ROOT, base: Mapping[str, str] | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    """Runs Python with these words to its end; `base` is its environment, this process's unless given."""
    own = {**(base or os.environ), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=own, capture_output=True, text=True, check=False, timeout=600)


def below(top: int) -> list[int]:
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may have ended since
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = [top]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 200) -> None:
    """Waits until the condition holds; fails after this time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.05)
