"""Text and JSON files that are written atomically."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from distributed_autolora.errors import masked
from distributed_autolora.files.atomic_write import atomic_write

_UNFINISHED = re.compile(r"\..+\.[0-9]+")


def write_json(path: Path, values: Any) -> None:
    """Writes JSON, atomically.

    Raises:
        RunFailedError: when the file cannot be written.
    """
    _replace(path, json.dumps(values, indent=2))


def read_json(path: Path) -> Any:
    """Returns what `write_json` wrote.

    Raises:
        OSError: when the file cannot be read.
        ValueError: when it is no JSON.
    """
    return json.loads(path.read_text())


def write_text(path: Path, text: str) -> None:
    """Writes a text, such as a stack trace, atomically and without the secrets of its URIs.

    Raises:
        RunFailedError: when the file cannot be written; then an earlier one is still there.
    """
    _replace(path, masked(text))


def remove_unfinished(folder: Path) -> None:
    """Removes what killed processes left of files that they were writing; nobody else may be writing there now."""
    for file in folder.glob(".*"):
        if _UNFINISHED.fullmatch(file.name):
            file.unlink(missing_ok=True)


def _replace(path: Path, text: str) -> None:
    with atomic_write(path) as unfinished:
        unfinished.write_text(text)
