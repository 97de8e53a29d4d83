"""SHA-256 of the files of a task; that of large files that did not change is remembered."""

import contextlib
import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs

from distributed_autolora.data.parquet.locations import readable, split_files
from distributed_autolora.errors import UserError
from distributed_autolora.files import read_json, write_json
from distributed_autolora.records import from_json, to_json

MANY_BYTES = 64 * 2**20
"""From this size on hashing takes long enough for its result to be kept."""
SETTLED_S = 2.0
"""A file that changed later than this before it was hashed may change again without another time stamp: file systems
round them, FAT to two seconds. Its digest is not kept, as in Git's index."""
_SPLITS = ("test", "train")


@dataclass(frozen=True)
class _Kept:
    sha256: str


def data_digest(
    folder: str, kept: Path | None = None, *, many_bytes: int = MANY_BYTES, settled_s: float = SETTLED_S
) -> str:
    """Returns the SHA-256 of the bytes of all train and test files, in the order of their names.

    That of `many_bytes` or more in local files is kept in the folder `kept`, and read from there for files of the same
    path, size, inode, and times of the last change of content and of attributes.

    Raises:
        UserError: if the folder or the files of a split are missing or cannot be read.
    """
    splits = [split_files(folder, split) for split in _SPLITS]
    began, state = time.time_ns(), None
    if kept is not None and all(isinstance(filesystem, pyarrow.fs.LocalFileSystem) for filesystem, _ in splits):
        state = _state([path for _, paths in splits for path in paths])
    if kept is None or state is None or sum(size for _, size, *_ in state) < many_bytes:
        return _hashed(splits)
    file = kept / f"digest-{hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, UserError):
        return from_json(_Kept, read_json(file), str(file)).sha256
    digest = _hashed(splits)
    newest = max(time_ns for _, _, _, *times in state for time_ns in times)
    if newest <= began - settled_s * 1e9 and _state([path for path, *_ in state]) == state:
        with contextlib.suppress(OSError, UserError):  # it only saves time
            kept.mkdir(parents=True, exist_ok=True)
            write_json(file, to_json(_Kept(digest)))
    return digest


def _state(paths: list[str]) -> list[tuple[str, int, int, int, int]]:
    """Returns path, size, inode, and the times of the last change of content and of attributes of each file."""
    states = []
    for path in paths:
        # An open file's attributes are asked of an NFS server; those of a path may be a minute old.
        with readable(path), open(path, "rb") as file:
            found = os.fstat(file.fileno())
        states.append((path, found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns))
    return states


def _hashed(splits: list[tuple[Any, list[str]]]) -> str:
    digest = hashlib.sha256()
    for filesystem, paths in splits:
        for path in paths:
            content = hashlib.sha256()
            with readable(path), filesystem.open_input_stream(path) as stream:
                while block := stream.read(2**20):
                    content.update(block)
            digest.update(content.digest())
    return digest.hexdigest()
