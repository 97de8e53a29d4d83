"""Files that are written whole or not at all, and what people are told where they cannot be."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from distributed_autolora.errors import cannot_write


@contextlib.contextmanager
def whole_file(path: Path, *failures: type[Exception]) -> Iterator[Path]:
    """Gives the path of another file in the same folder, which becomes `path` when the block ends.

    Where the block fails, an earlier file stays as it is, and nothing is left of the new one.

    Args:
        path: the file.
        failures: what the writer raises beside OSError where it cannot write.

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
    """Turns what the system says of a file or folder that cannot be written into a `StorageError`."""
    refused: tuple[type[Exception], ...] = (OSError, *failures)
    try:
        yield
    except refused as error:
        raise cannot_write(path, error) from error
