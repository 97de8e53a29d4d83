"""Files: atomic writes, one error for what cannot be written, and a lock on a folder."""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from distributed_autolora.errors import UserError, cannot_write, masked

_UNFINISHED = re.compile(r"\..+\.[0-9]+")
_LOCK = "lock"


@contextlib.contextmanager
def atomic_write(path: Path, *failures: type[Exception]) -> Iterator[Path]:
    """Yields the path of a temporary file in the same folder, which replaces `path` when the block ends.

    If the block fails, the earlier file stays as it is, and the temporary one is removed. A loss of power leaves the
    earlier file or the new one.

    Args:
        failures: what the writer raises, besides OSError, if it cannot write.

    Raises:
        StorageError: when it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path, *failures):
            yield unfinished
            sync(unfinished)
            os.replace(unfinished, path)
    finally:
        with contextlib.suppress(OSError):  # as on a read-only or vanished disk, where there is nothing to remove
            unfinished.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until the content of a file is on its disk.

    Raises:
        OSError: when it cannot be written there.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def writing(path: Path, *failures: type[Exception]) -> Iterator[None]:
    """Turns the error of a file or folder that cannot be written into a `StorageError`."""
    refused: tuple[type[Exception], ...] = (OSError, *failures)
    try:
        yield
    except refused as error:
        raise cannot_write(path, error) from error


def write_json(path: Path, values: Any) -> None:
    """Writes JSON, atomically.

    Raises:
        StorageError: when the file cannot be written.
    """
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(values, indent=2))


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
        StorageError: when the file cannot be written; then an earlier one is still there.
    """
    with atomic_write(path) as unfinished:
        unfinished.write_text(masked(text), encoding="utf-8")


def acquire_folder(folder: Path, *, what: str, otherwise: str, elsewhere: str) -> IO[str]:
    """Locks an existing folder for this process, until the returned file is closed or the process ends.

    Files that an earlier holder was writing when it was killed are removed.

    Args:
        what: its name in messages: 'Run "demo-1"'.
        otherwise: what to do instead of waiting, after "Wait for it, or".
        elsewhere: the flag that names another place.

    Raises:
        UserError: when another live process holds it, or its file system cannot lock.
    """
    lock = _locked(folder / _LOCK, what=what, otherwise=otherwise, elsewhere=elsewhere)
    remove_unfinished(folder)
    _sign(lock)
    return lock


@contextlib.contextmanager
def claimed(file: Path, *, what: str, otherwise: str, elsewhere: str) -> Iterator[None]:
    """Claims a name while the block runs, by a file that only one process can make; it is removed at the end.

    The file of a process that was killed is taken over where its lock tells so: on the same node.

    Args:
        what: its name in messages, like `otherwise` and `elsewhere` of `acquire_folder`.

    Raises:
        UserError: when another process has it, or its file system cannot lock.
    """
    while True:
        is_new = True
        try:
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            is_new = False
        except OSError as error:
            raise UserError(f"{file} cannot be made ({error.strerror}): choose another {elsewhere}.") from None
        lock = _locked(file, what=what, otherwise=otherwise, elsewhere=elsewhere)
        # Whoever had it may have removed it between its opening and its lock.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(file.stat(), os.fstat(lock.fileno())):
                break
        lock.close()
    lock.seek(0)
    text = "" if is_new else lock.read()
    holder = text.strip() if text.endswith("\n") else ""  # of a process that was killed while it wrote
    with lock:
        if holder and not holder.endswith(f" on {os.uname().nodename}"):  # its lock may not reach this node
            raise UserError(f"{what} is in use by {holder}. If that process is gone, remove {file}; or {otherwise}.")
        _sign(lock)
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def _locked(file: Path, *, what: str, otherwise: str, elsewhere: str) -> IO[str]:
    try:
        lock = file.open("a+")
    except OSError as error:
        raise UserError(f"{file} cannot be opened ({error.strerror}): choose another {elsewhere}.") from None
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
            f"The file system of {file.parent} cannot lock files ({error.strerror}): choose another {elsewhere}."
        ) from None
    return lock


def _sign(lock: IO[str]) -> None:
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {os.uname().nodename}\n")
    lock.flush()


def remove_unfinished(folder: Path) -> None:
    """Removes files that `atomic_write` had not finished in a folder; call it while no other process writes there."""
    for file in folder.glob(".*"):
        if _UNFINISHED.fullmatch(file.name):
            file.unlink(missing_ok=True)
