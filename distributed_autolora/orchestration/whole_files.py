"""Text files that are written whole or not at all, and that never hold the secret of a URI.

What a later start needs of such a secret is kept beside them, in one file that only its owner can read.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

from distributed_autolora.errors import cannot_write, masked

SECRETS_FILE = "secrets.json"
"""URIs with their secrets, by the form without; for its owner alone (mode 0600)."""
_UNFINISHED = re.compile(r"\..+\.[0-9]+")
_WORD = re.compile(r"[^\s\"'<>]+")


def write_json(path: Path, values: Any, *, sealed: bool = False) -> None:
    """Writes JSON, whole or not at all, without the secrets of URIs.

    Args:
        path: the file.
        values: what is written.
        sealed: keep those secrets for `read_sealed`.

    Raises:
        RunFailedError: when the file cannot be written.
    """
    (write_sealed if sealed else write_text)(path, json.dumps(values, indent=2))


def write_text(path: Path, text: str) -> None:
    """Writes a text, whole or not at all, without the secrets of URIs.

    Raises:
        RunFailedError: when the file cannot be written; then an earlier one is still there.
    """
    _replace(path, masked(text), 0o666)


def write_sealed(path: Path, text: str) -> None:
    """Writes a text as `write_text` does, and keeps the secrets that it had for `read_sealed`.

    Raises:
        RunFailedError: when a file cannot be written.
    """
    secrets = {masked(word): word for word in _WORD.findall(text) if masked(word) != word}
    if secrets:
        # First: a file whose secrets are lost is worse than secrets that nothing needs.
        file = path.with_name(SECRETS_FILE)
        _replace(file, json.dumps({**_secrets(file), **secrets}, indent=2), 0o600)
    write_text(path, text)


def read_sealed(path: Path) -> str:
    """Returns a text with the secrets that `write_sealed` kept, as far as they may be read.

    Raises:
        OSError: when the file cannot be read.
    """
    text, secrets = path.read_text(), _secrets(path.with_name(SECRETS_FILE))
    return _WORD.sub(lambda word: secrets.get(word[0], word[0]), text) if secrets else text


def remove_unfinished(folder: Path) -> None:
    """Removes what killed processes left of files that they were writing; nobody else may be writing there now."""
    for file in folder.glob(".*"):
        if _UNFINISHED.fullmatch(file.name):
            file.unlink(missing_ok=True)


def _secrets(file: Path) -> dict[str, str]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _replace(path: Path, text: str, mode: int) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.unlink(missing_ok=True)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        os.replace(unfinished, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # as on a read-only or vanished disk, where there is nothing to remove
            unfinished.unlink(missing_ok=True)
        raise cannot_write(path, error) from error
