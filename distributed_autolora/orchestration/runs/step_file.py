"""How far the current epoch is, as a small file in the run's folder: workers write it, the program shows it."""

import contextlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from distributed_autolora.errors import StorageError
from distributed_autolora.files import read_json, write_json
from distributed_autolora.training.reporter import StepProgress

_FILE = "progress.json"


def step_writer(folder: Path) -> Callable[[StepProgress], None]:
    """Returns what keeps the newest progress; a disk that fails does not end the run."""

    def write(progress: StepProgress) -> None:
        with contextlib.suppress(StorageError):
            write_json(folder / _FILE, asdict(progress))

    return write


def read_steps(folder: Path) -> StepProgress | None:
    """Returns the newest progress; None where there is none."""
    try:
        return StepProgress(**read_json(folder / _FILE))
    except (OSError, ValueError, TypeError):
        return None


def remove_steps(folder: Path) -> None:
    """Removes the file of a run that has ended."""
    with contextlib.suppress(OSError):
        (folder / _FILE).unlink(missing_ok=True)
