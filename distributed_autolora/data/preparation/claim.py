"""Keeps a second program from the folder or URI that a task is being written to."""

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs

from distributed_autolora.data.parquet.locations import open_location, writable
from distributed_autolora.errors import UserError
from distributed_autolora.files import claimed

_NAME = ".preparing"
_HOLDER = re.compile(r"process (\d+) on (.*), [0-9a-f]{32}")


@contextlib.contextmanager
def claim(folder: str) -> Iterator[Callable[[], None]]:
    """Claims a folder or URI while the block runs; call the yielded function just before files get their names.

    Object stores cannot make a file exclusively: of two that begin in the same moment, that function refuses one.

    Raises:
        UserError: when another process writes there, or the claim cannot be written.
    """
    filesystem, path = open_location(folder)
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        words = {"what": folder, "otherwise": "give another --output", "elsewhere": "--output"}
        with claimed(Path(path, _NAME), **words):
            yield lambda: None
        return
    file, own = f"{path}/{_NAME}", f"process {os.getpid()} on {os.uname().nodename}, {uuid.uuid4().hex}"

    def check() -> None:
        holder = _content(filesystem, file)
        if holder is not None and holder != own and not _has_ended(holder):
            raise UserError(
                f"{folder} is in use by {holder}. Wait for it; or, if that process is gone, remove "
                f"{folder.rstrip('/')}/{_NAME}; or give another --output."
            )

    with writable(folder):
        check()
        with filesystem.open_output_stream(file) as stream:
            stream.write(own.encode())
    try:
        yield check
    finally:
        with contextlib.suppress(OSError):
            if _content(filesystem, file) == own:
                filesystem.delete_file(file)


def _content(filesystem: Any, file: str) -> str | None:
    if filesystem.get_file_info(file).type == pyarrow.fs.FileType.NotFound:
        return None
    with filesystem.open_input_stream(file) as stream:
        return str(stream.read(), "utf-8", "replace")


def _has_ended(holder: str) -> bool:
    """Tells whether a claim is that of a process of this node that has ended."""
    match = _HOLDER.fullmatch(holder)
    if match is None or match[2] != os.uname().nodename:
        return False
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it is another user's
    return False
