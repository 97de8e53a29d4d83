"""The one file format of labelled images: encoded bytes, label and stable row id in Parquet."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from distributed_autolora.data.parquet.locations import open_location, writable

ROW_GROUP = 256
"""Rows that are written, and can be read, together, at most."""
ROW_GROUP_BYTES = 32 * 2**20
"""A row group ends after this many bytes of images, so that it fits into memory whatever the size of the files."""
SHARD_BYTES = 256 * 2**20
"""A split is continued in another file after this many bytes of images."""

_PARTIAL = re.compile(r"\..*-\d{5,}\.\d+\.partial")
_SCHEMA = pa.schema([("image", pa.binary()), ("label", pa.int64()), ("row_id", pa.string())])


@dataclass(frozen=True)
class ImageRow:
    """One labelled image."""

    image: bytes
    """The encoded file (PNG, JPEG, ...), kept as it is."""
    label: int
    """Index into the class names."""
    row_id: str
    """Where the image came from; never changes."""


def groups_of(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Cuts rows into lists of `size`; the last may be shorter."""
    iterator = iter(rows)
    while group := list(islice(iterator, size)):
        yield group


def remove_partial_files(folder: str) -> None:
    """Removes what a killed `SplitWriter` left in a local folder; call it while no other process writes there."""
    filesystem, path = open_location(folder)
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):  # an object store shows only complete files
        for file in Path(path).glob(".*.partial"):
            if _PARTIAL.fullmatch(file.name):
                file.unlink(missing_ok=True)


class SplitWriter:
    """Writes the Parquet files of one split under their final names once all of them are complete.

    Leaving its block without `finish` removes what was written. One file is called NAME.parquet, several
    NAME-00000-of-00003.parquet and so on.

    Args:
        name: of the files, without their ending.
        shard_bytes: begin another file after this many bytes of images; None: never.
    """

    def __init__(self, folder: str, name: str, num_classes: int, *, shard_bytes: int | None = SHARD_BYTES) -> None:
        self._folder, self._name, self._num_classes, self._shard_bytes = folder, name, num_classes, shard_bytes
        self._filesystem, self._path = open_location(folder)
        self._shards: list[_Shard] = []
        with writable(folder):
            self._filesystem.create_dir(self._path, recursive=True)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def write(self, group: Sequence[ImageRow]) -> None:
        """Adds one row group of up to `ROW_GROUP` rows.

        Raises:
            ValueError: for a label that names no class.
            UserError: if the file cannot be written.
        """
        for row in group:
            if not 0 <= row.label < self._num_classes:
                raise ValueError(f'label {row.label} of "{row.row_id}" names no class')
        with writable(self._folder):
            if not self._shards or (self._shard_bytes and self._shards[-1].image_bytes >= self._shard_bytes):
                self._open_shard()
            self._shards[-1].write(group)

    def finish(self, texts: dict[str, Any]) -> None:
        """Completes all files with these metadata (JSON values by key) and gives them their names.

        Raises:
            UserError: if a file cannot be written.
        """
        with writable(self._folder):
            if not self._shards:
                self._open_shard()
            for shard in self._shards:
                shard.finish(texts)
            count = len(self._shards)
            for number, shard in enumerate(self._shards):
                name = self._name if count == 1 else f"{self._name}-{number:05d}-of-{count:05d}"
                # A rename in one folder: whoever looks sees the old file or the new one, never a part.
                self._filesystem.move(shard.path, f"{self._path}/{name}.parquet")
        self._shards = []

    def __exit__(self, *_: object) -> None:
        """Removes files that were not finished."""
        for shard in self._shards:
            with contextlib.suppress(OSError, pa.ArrowException):
                shard.abandon()
            with contextlib.suppress(OSError):
                self._filesystem.delete_file(shard.path)

    def _open_shard(self) -> None:
        path = f"{self._path}/.{self._name}-{len(self._shards):05d}.{os.getpid()}.partial"
        self._shards.append(_Shard(path, self._filesystem.open_output_stream(path)))


class _Shard:
    def __init__(self, path: str, stream: Any) -> None:
        self.path, self.image_bytes = path, 0
        self._stream, self._content = stream, hashlib.sha256()
        # Page checksums tell a damaged file from a good one when it is read.
        options = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}
        self._writer = pq.ParquetWriter(stream, _SCHEMA, **options)

    def write(self, group: Sequence[ImageRow]) -> None:
        for row in group:
            self._content.update(f"{row.label}:{row.row_id}:{len(row.image)}:".encode() + row.image)
            self.image_bytes += len(row.image)
        columns = [[row.image for row in group], [row.label for row in group], [row.row_id for row in group]]
        self._writer.write_table(pa.table(columns, schema=_SCHEMA), row_group_size=ROW_GROUP)

    def finish(self, texts: dict[str, Any]) -> None:
        texts = {**texts, "content_digest": self._content.hexdigest()}
        metadata = {key: json.dumps(value, ensure_ascii=False) for key, value in texts.items()}
        self._writer.add_key_value_metadata(metadata)
        self.abandon()

    def abandon(self) -> None:
        self._writer.close()
        self._stream.close()
