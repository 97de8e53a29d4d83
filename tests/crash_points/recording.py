"""Records what a program does to the files of a folder, and what a crash at any of these points may leave of it.

The folder is looked at before every operation that Python reports to its audit hooks. Files that a library written in
another language wrote since then are seen as written in any order.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self
from unittest import mock

MARK = "crash_points.mark"
"""Audit event of a test that wants the folder looked at."""
_OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", MARK)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
UNFINISHED = re.compile(r"\..+\.[0-9]+")
_CUTS = 16
_SMALL = 1 << 16


class File(NamedTuple):
    """A file's inode and content; the content of a folder is None."""

    inode: int
    content: bytes | None


@dataclass(frozen=True)
class State:
    """All that a folder holds, by path, and which files would lose their content with the machine's power."""

    files: Mapping[str, File]
    unsynced: tuple[str, ...]


class Recording:
    """The states of a folder between operations, while its block runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.states: list[State] = []
        self._read: dict[tuple[int, int, int], bytes] = {}
        self._synced: dict[int, bytes | None] = {}
        self._is_looking = False

    def __enter__(self) -> Self:
        self._synced = {file.inode: file.content for file in self._files().values()}
        self._fsync = os.fsync
        self._patch = mock.patch("os.fsync", self._sync)
        self._patch.start()
        self.look()
        _recording.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _recording.remove(self)
        self._patch.stop()
        self.look()

    def look(self) -> None:
        """Adds the folder's state, if it is another than the last one."""
        if self._is_looking:
            return
        self._is_looking = True
        try:
            files = self._files()
            if not self.states or files != self.states[-1].files:
                lost = [path for path, file in files.items() if file.content and self._is_lost(file)]
                self.states.append(State(files, tuple(lost)))
        finally:
            self._is_looking = False

    def _is_lost(self, file: File) -> bool:
        return self._synced.get(file.inode) != file.content

    def _sync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        inode = os.fstat(descriptor).st_ino
        self._synced |= {file.inode: file.content for file in self._files().values() if file.inode == inode}

    def _files(self) -> dict[str, File]:
        found: dict[str, File] = {}
        for path in sorted(self.root.rglob("*")):
            try:
                facts = path.stat()
                content = None if path.is_dir() else self._content(path, facts)
            except FileNotFoundError:
                continue
            found[str(path.relative_to(self.root))] = File(facts.st_ino, content)
        return found

    def _content(self, path: Path, facts: os.stat_result) -> bytes:
        key = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
        if facts.st_size <= _SMALL or key not in self._read:
            self._read[key] = path.read_bytes()
        return self._read[key]


_recording: list[Recording] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _recording and event in _OPERATIONS and (event != "open" or args[2] & _WRITES):
        for one in _recording:
            one.look()


sys.addaudithook(_hook)

Content = dict[str, bytes | None]
"""What is in a folder, by path; None is a folder."""


def crashes(states: list[State]) -> Iterator[Content]:
    """Yields what a crash may leave: the first n operations, with a torn write, and without what was not synced."""
    for before, after in pairwise(states):
        yield from _torn(before, after)
        yield from _without_power(after)


def _torn(before: State, after: State) -> Iterator[Content]:
    """Yields what a killed process leaves between two states."""
    start = {path: file.content for path, file in before.files.items()}
    gone = [path for path in before.files if path not in after.files]
    moved = {before.files[path].inode: path for path in gone}
    new = [path for path, file in after.files.items() if before.files.get(path) != file]
    folders = {path: None for path in new if after.files[path].content is None}
    files = [path for path in new if path not in folders]
    for order in (files, files[::-1]) if len(files) > 1 else (files,):
        now = start | folders
        for path in order:
            inode, content = after.files[path]
            assert content is not None
            source = moved.get(inode)
            if source is None:
                yield from (now | {path: content[:length]} for length in _cuts(len(content)))
            else:
                now.pop(source, None)
            now = now | {path: content}
            yield now
    for path in reversed([path for path in gone if path in now]):
        now = {name: content for name, content in now.items() if name != path}
        yield now


def _cuts(length: int) -> list[int]:
    return sorted({0, 1, max(0, length - 1), *(length * part // _CUTS for part in range(_CUTS))} - {length})


def _without_power(state: State) -> Iterator[Content]:
    """Yields what a loss of power leaves of a state: lengths and names are there, content may not be."""
    now = {path: file.content for path, file in state.files.items()}
    lost = [path for path in state.unsynced if now[path]]
    for paths in [lost] + [[path] for path in lost] if len(lost) > 1 else [lost]:
        for damage in (_emptied, _halved, _half_zeros):
            yield now | {path: damage(now[path] or b"") for path in paths}


def _emptied(content: bytes) -> bytes:
    return b""


def _halved(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _half_zeros(content: bytes) -> bytes:
    return _halved(content) + bytes(len(content) - len(content) // 2)


def digest(content: Content) -> bytes:
    """Returns a hash of names and bytes."""
    whole = blake2b()
    for path, data in sorted(content.items()):
        whole.update(f"{path}\0".encode() + (b"folder" if data is None else _hash(data)))
    return whole.digest()


@lru_cache(maxsize=256)
def _hash(data: bytes) -> bytes:
    return blake2b(data).digest()


def state_of(root: Path) -> bytes:
    """Returns a hash of what a folder holds, without the content of unfinished files, which nothing reads."""
    found: Content = {}
    for path in sorted(root.rglob("*")):
        content = None if path.is_dir() else b"" if UNFINISHED.fullmatch(path.name) else path.read_bytes()
        found[str(path.relative_to(root))] = content
    return digest(found)


def put_back(root: Path, content: Content) -> None:
    """Makes a folder hold exactly this; unfinished files are those of another process then."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for path, data in sorted(content.items()):
        place = root / re.sub(rf"\.{os.getpid()}$", ".1", path)
        place.parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            place.mkdir(exist_ok=True)
        else:
            place.write_bytes(data)
