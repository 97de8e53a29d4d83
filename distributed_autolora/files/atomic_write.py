"""Atomic writes, and one error for what cannot be written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from distributed_autolora.errors import cannot_write


@contextlib.contextmanager
def atomic_write(path: Path, *failures: type[Exception]) -> Iterator[Path]:
    """Yields the path of a temporary file in the same folder, which replaces `path` when the block ends.

    If the block fails, the earlier file stays as it is, and the temporary one is removed.

    Args:
        path: the file.
        failures: what the writer raises, besides OSError, if it cannot write.

    Raises:
        StorageError: when it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path, *failures):
            yield unfinished
            os.replace(unfinished, path)
    finally:
        with contextlib.suppress(OSError):  # as on a read-only or vanished disk, where there is nothing to remove
            unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path, *failures: type[Exception]) -> Iterator[None]:
    """Turns the error of a file or folder that cannot be written into a `StorageError`."""
    refused: tuple[type[Exception], ...] = (OSError, *failures)
    try:
        yield
    except refused as error:
        raise cannot_write(path, error) from error
