"""Text files that are written whole or not at all, and that never hold the secret of a URI.

What a later start needs of such a secret is kept beside them, in one file that only its owner can read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed_autolora.errors import masked, masked_uri
from distributed_autolora.files.atomic_write import atomic_write

SECRETS_FILE = "secrets.json"
"""Texts with the secrets of their URIs, by the form without; for its owner alone (mode 0600)."""
_UNFINISHED = re.compile(r"\..+\.[0-9]+")
_URI_START = re.compile(r"[A-Za-z][\w+.-]*://")


def write_json(path: Path, values: Any, *, sealed: bool = False) -> None:
    """Writes JSON, whole or not at all, without the secrets of URIs.

    Text is masked value by value: within a file, quoting changes what a secret looks like.

    Args:
        path: the file.
        values: what is written.
        sealed: keep those secrets for `read_json`.

    Raises:
        RunFailedError: when the file cannot be written.
    """
    if sealed:
        write_sealed(path, values, _json)
    else:
        _replace(path, _json(without_secrets(values)), 0o666)


def write_sealed(path: Path, values: Any, dump: Callable[[Any], str]) -> None:
    """Writes JSON values, whole or not at all, without the secrets of URIs, which it keeps for `unseal`.

    Args:
        path: the file; the secrets are kept beside it.
        values: what is written.
        dump: makes the file's text of values.

    Raises:
        RunFailedError: when a file cannot be written.
    """
    _replace(path, dump(_seal(path.parent, values)), 0o666)


def without_secrets(values: Any) -> Any:
    """Returns JSON values without the secrets of their URIs."""
    return _mapped(values, _without_secret)


def read_json(path: Path) -> Any:
    """Returns what `write_json` wrote, with the secrets that it kept, as far as they may be read.

    Raises:
        OSError: when the file cannot be read.
        ValueError: when it is no JSON.
    """
    return unseal(path.parent, json.loads(path.read_text()))


def write_text(path: Path, text: str) -> None:
    """Writes a text for people, whole or not at all, without the secrets of URIs.

    Raises:
        RunFailedError: when the file cannot be written; then an earlier one is still there.
    """
    _replace(path, masked(text), 0o666)


def _seal(folder: Path, values: Any) -> Any:
    """Returns JSON values without the secrets of their URIs, which are kept in the folder for `unseal`."""
    secrets: dict[str, str] = {}

    def hide(text: str) -> str:
        plain = _without_secret(text)
        if plain != text:
            secrets[plain] = text
        return plain

    plain = _mapped(values, hide)
    if secrets:
        # Before the file itself: one whose secrets are lost is worse than secrets that nothing needs.
        file = folder / SECRETS_FILE
        _replace(file, json.dumps({**_secrets(file), **secrets}, indent=2), 0o600)
    return plain


def unseal(folder: Path, values: Any) -> Any:
    """Returns values with the secrets that `write_sealed` kept in the folder, as far as they may be read."""
    secrets = _secrets(folder / SECRETS_FILE)
    return _mapped(values, lambda text: secrets.get(text, text)) if secrets else values


def remove_unfinished(folder: Path) -> None:
    """Removes what killed processes left of files that they were writing; nobody else may be writing there now."""
    for file in folder.glob(".*"):
        if _UNFINISHED.fullmatch(file.name):
            file.unlink(missing_ok=True)


def _json(values: Any) -> str:
    return json.dumps(values, indent=2)


def _without_secret(text: str) -> str:
    return masked_uri(text) if _URI_START.match(text) else masked(text)


def _mapped(values: Any, change: Callable[[str], str]) -> Any:
    """Returns JSON values with each text changed, the keys as well."""
    if isinstance(values, str):
        return change(values)
    if isinstance(values, dict):
        return {_mapped(key, change): _mapped(value, change) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_mapped(value, change) for value in values]
    return values


def _secrets(file: Path) -> dict[str, str]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _replace(path: Path, text: str, mode: int) -> None:
    with atomic_write(path) as unfinished:
        unfinished.unlink(missing_ok=True)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
