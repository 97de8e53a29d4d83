"""Folders of Parquet files, on a local disk or any pyarrow filesystem."""

import contextlib
import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from distributed_autolora import hub
from distributed_autolora.console import command
from distributed_autolora.errors import UserError, first_line, kind_of

HOW_TO_WRITE = f"{command('data prepare')} writes such files"
_NUMBERED = re.compile(r"(?P<name>.*)-\d{5}-of-(?P<count>\d{5})\.parquet")


def is_uri(location: str) -> bool:
    """Tells whether a location is a URI such as s3://bucket/folder, not a local path."""
    return "://" in location


def absolute_location(location: str) -> str:
    """Returns a local path as an absolute one, a URI as it is."""
    return location if is_uri(location) else str(Path(location).expanduser().absolute())


def open_location(location: str) -> tuple[Any, str]:
    """Returns the pyarrow filesystem of a local path or URI, and the path inside it.

    Raises:
        UserError: for a URI that pyarrow cannot open.
    """
    if not is_uri(location):
        return pyarrow.fs.LocalFileSystem(), absolute_location(location)
    if location.startswith(hub.SCHEME):
        return pyarrow.fs.LocalFileSystem(), str(hub.local_copy(location))
    with readable(location):
        return pyarrow.fs.FileSystem.from_uri(location)  # type: ignore[no-any-return]


def split_files(folder: str, split: str) -> tuple[Any, list[str]]:
    """Returns the filesystem and the ascending paths of the files `<split>*.parquet` of a folder.

    Raises:
        UserError: if there is no such folder or file, or one of several that belong together is missing.
    """
    filesystem, path = open_location(folder)
    with readable(folder):
        kind = filesystem.get_file_info(path).type
        found = _list(filesystem, path) if kind != pyarrow.fs.FileType.File else []
    # An object store knows no folders, only the objects below a prefix.
    if kind != pyarrow.fs.FileType.Directory and not found:
        state = "is a file" if kind == pyarrow.fs.FileType.File else "does not exist"
        raise UserError(f"{folder} {state}: give a folder with train*.parquet and test*.parquet. {HOW_TO_WRITE}.")
    paths = sorted(info.path for info in found if fnmatch.fnmatch(info.base_name, f"{split}*.parquet"))
    if not paths:
        there = ", ".join(sorted(info.base_name for info in found)[:8]) or "nothing"
        raise UserError(f"{folder} has no {split}*.parquet; it holds: {there}. {HOW_TO_WRITE}.")
    _check_complete(folder, paths)
    return filesystem, paths


def _check_complete(folder: str, paths: list[str]) -> None:
    names = [path.rpartition("/")[2] for path in paths]
    numbered = {(match["name"], match["count"]) for match in map(_NUMBERED.fullmatch, names) if match}
    for name, count in sorted(numbered):
        wanted = (f"{name}-{number:05d}-of-{count}.parquet" for number in range(int(count)))
        missing = next((one for one in wanted if one not in names), None)
        if missing is not None:
            raise UserError(f"{folder} lacks {missing}: copy all {int(count)} files, or write them again.")
        if f"{name}.parquet" in names or len([one for one, _ in numbered if one == name]) > 1:
            raise UserError(f"{folder} holds two versions of {name}: {', '.join(names[:8])}. Keep the files of one.")


def existing_files(folder: str) -> list[str]:
    """Makes the folder where it is missing and returns the train and test files in it, as paths of its filesystem.

    Raises:
        UserError: if the folder cannot be made or listed.
    """
    if folder.startswith(hub.SCHEME):
        raise UserError(f"{folder} cannot be written: give a folder, and upload it by `hf upload`.")
    filesystem, path = open_location(folder)
    with writable(folder):
        filesystem.create_dir(path, recursive=True)
        found = _list(filesystem, path)
    return sorted(info.path for info in found if re.fullmatch(r"(train|test).*\.parquet", info.base_name))


def remove_files(folder: str, paths: list[str]) -> None:
    """Deletes files that `existing_files` named.

    Raises:
        UserError: if one cannot be deleted.
    """
    filesystem, _ = open_location(folder)
    with writable(folder):
        for path in paths:
            filesystem.delete_file(path)


def split_bytes(folder: str, split: str) -> int:
    """Returns the bytes of a split's files.

    Raises:
        UserError: if there is no such folder or file.
    """
    filesystem, paths = split_files(folder, split)
    with readable(folder):
        return sum(info.size or 0 for info in filesystem.get_file_info(paths))


def unpacked_bytes(folder: str, split: str) -> int:
    """Returns the bytes of a split's rows once they are decompressed, as its files state them.

    Raises:
        UserError: if there is no such folder or file, or one is damaged.
    """
    filesystem, paths = split_files(folder, split)
    total = 0
    for path in paths:
        with readable(path), filesystem.open_input_file(path) as stream:
            facts = pq.ParquetFile(stream).metadata
            total += sum(facts.row_group(group).total_byte_size for group in range(facts.num_row_groups))
    return total


@contextlib.contextmanager
def readable(where: str) -> Iterator[None]:
    """Turns errors of reading into a `UserError`."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise kind_of(error)(f"{where} cannot be read: {one_line(error)}. {HOW_TO_WRITE}.") from error


@contextlib.contextmanager
def writable(where: str) -> Iterator[None]:
    """Turns errors of writing into a `UserError`."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{where} cannot be written: {one_line(error)}. Choose a folder that you may write to."
        ) from error


def one_line(error: BaseException) -> str:
    """Returns the first line of an error's message without its final full stop."""
    return first_line(error).rstrip(". ")


def _list(filesystem: Any, path: str) -> list[Any]:
    selector = pyarrow.fs.FileSelector(path, allow_not_found=True)
    return [info for info in filesystem.get_file_info(selector) if not info.base_name.startswith(".")]
