"""A lock on a folder: one process at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from distributed_autolora.errors import UserError
from distributed_autolora.files.json_files import remove_unfinished

_NAME = "lock"


def acquire_folder(folder: Path, *, what: str, otherwise: str, elsewhere: str) -> IO[str]:
    """Locks an existing folder for this process, until the returned file is closed or the process ends.

    Files that an earlier holder was writing when it was killed are removed.

    Args:
        folder: the folder.
        what: its name in messages: 'Run "demo-1"'.
        otherwise: what to do instead of waiting, after "Wait for it, or".
        elsewhere: the flag that names another place.

    Raises:
        UserError: when another live process holds it, or its file system cannot lock.
    """
    try:
        lock = (folder / _NAME).open("a+")
    except OSError as error:
        raise UserError(f"{folder / _NAME} cannot be opened ({error.strerror}): choose another {elsewhere}.") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise UserError(f"{what} is in use by {holder}. Wait for it, or {otherwise}.") from None
    except OSError as error:
        lock.close()
        raise UserError(
            f"The file system of {folder} cannot lock files ({error.strerror}): choose another {elsewhere}."
        ) from None
    remove_unfinished(folder)
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {os.uname().nodename}")
    lock.flush()
    return lock


def last_holder(folder: Path) -> str:
    """Returns who locked the folder last, "process PID on NODE"; empty for nobody."""
    try:
        return (folder / _NAME).read_text().strip()
    except OSError:
        return ""
