"""The one file format of labelled images: encoded bytes, label and stable row id in Parquet."""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from distributed_autolora.data.parquet_checks import COLUMNS, check_columns, check_metadata, check_rows
from distributed_autolora.data.storage import data_digest, open_location, readable, split_files, writable
from distributed_autolora.errors import UserError

__all__ = ["ImageRow", "ImageTable", "check_same_classes", "data_digest", "read_images", "write_images"]

ROW_GROUP = 256
"""Rows that are written, and can be read, together."""

_SCHEMA = pa.schema([("image", pa.binary()), ("label", pa.int64()), ("row_id", pa.string())])
# In memory offsets have 64 bits, so that no file is too large for one chunk.
_IN_MEMORY = pa.schema([("image", pa.large_binary()), ("label", pa.int64()), ("row_id", pa.large_string())])


@dataclass(frozen=True)
class ImageRow:
    """One labelled image."""

    image: bytes
    """The encoded file (PNG, JPEG, ...), kept as it is."""
    label: int
    """Index into the class names."""
    row_id: str
    """Where the image came from; never changes."""


@dataclass(frozen=True)
class ImageTable:
    """The rows of one split, in memory, still encoded; positions in it are the stable rows of a run."""

    labels: Tensor
    """int64 [n]."""
    class_names: tuple[str, ...]
    row_ids: tuple[str, ...]
    task: str
    licence: str
    provenance: str
    where: str
    """The folder and split, for messages."""
    encoded_images: Any
    """pyarrow ChunkedArray of n encoded images."""
    files: tuple[tuple[int, str], ...]
    """First row and path of each file that the rows came from."""

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.labels)

    def encoded(self, row: int) -> bytes:
        """Returns the encoded bytes of one image."""
        return self.encoded_images[row].as_py()  # type: ignore[no-any-return]

    def place(self, row: int) -> str:
        """Returns 'FILE, row R (row_id "ID")' for messages; R counts from 0 in that file."""
        first, path = self.files[bisect.bisect_right(self.files, row, key=lambda file: file[0]) - 1]
        return f'{path}, row {row - first} (row_id "{self.row_ids[row]}")'


def write_images(
    path: str | Path,
    rows: Iterable[ImageRow],
    *,
    class_names: Sequence[str],
    task: str,
    split: str,
    licence: str,
    provenance: str,
) -> None:
    """Writes one Parquet file, whole or not at all.

    Args:
        path: file to write; a local path or a URI of a pyarrow filesystem.
        rows: the images; only `ROW_GROUP` of them are held in memory.
        class_names: name of each label.
        task: name of the task.
        split: "train" or "test".
        licence: terms that the images may be used under.
        provenance: where the images came from and how they were chosen.

    Raises:
        ValueError: for a label outside 0 .. len(class_names) - 1.
        UserError: if the file cannot be written.
    """
    texts = {"class_names": list(class_names), "task": task, "split": split}
    texts |= {"licence": licence, "provenance": provenance}
    filesystem, target = open_location(str(path))
    folder, _, name = target.rpartition("/")
    partial = f"{folder}/.{name}.{os.getpid()}.partial"
    with writable(str(path)):
        filesystem.create_dir(folder, recursive=True)
        try:
            _write(filesystem, partial, rows, texts)
            # A rename in one folder: whoever looks sees the old file or the new one, never a part.
            filesystem.move(partial, target)
        except BaseException:
            with contextlib.suppress(OSError):
                filesystem.delete_file(partial)
            raise


def _write(filesystem: Any, path: str, rows: Iterable[ImageRow], texts: dict[str, Any]) -> None:
    content = hashlib.sha256()
    with (
        filesystem.open_output_stream(path) as stream,
        # Page checksums tell a damaged file from a good one when it is read.
        pq.ParquetWriter(stream, _SCHEMA, compression="zstd", use_dictionary=False, write_page_checksum=True) as writer,
    ):
        for group in _groups(rows):
            for row in group:
                if not 0 <= row.label < len(texts["class_names"]):
                    raise ValueError(f'label {row.label} of "{row.row_id}" names no class')
                content.update(f"{row.label}:{row.row_id}:{len(row.image)}:".encode() + row.image)
            columns = [[row.image for row in group], [row.label for row in group], [row.row_id for row in group]]
            writer.write_table(pa.table(columns, schema=_SCHEMA), row_group_size=ROW_GROUP)
        texts = {**texts, "content_digest": content.hexdigest()}
        writer.add_key_value_metadata({key: json.dumps(value, ensure_ascii=False) for key, value in texts.items()})


def _groups(rows: Iterable[ImageRow]) -> Iterator[list[ImageRow]]:
    iterator = iter(rows)
    while group := list(islice(iterator, ROW_GROUP)):
        yield group


def read_images(folder: str, split: str) -> ImageTable:
    """Reads all files `<split>*.parquet` of a folder, in the order of their names.

    Args:
        folder: local path or URI of a pyarrow filesystem.
        split: "train" or "test".

    Raises:
        UserError: for a missing folder or file, a damaged file, missing columns or class names, labels that
            name no class; says which file and row.
    """
    filesystem, paths = split_files(folder, split)
    tables, texts, files, count = [], [], [], 0
    for path in paths:
        table, metadata = _read_file(filesystem, path)
        tables.append(table)
        texts.append(metadata)
        files.append((count, path))
        count += len(table)
        _check_same(texts[0]["class_names"], metadata["class_names"], paths[0], path)
    table = pa.concat_tables(tables)
    return ImageTable(
        labels=torch.from_numpy(table["label"].to_numpy().copy()),
        class_names=tuple(texts[0]["class_names"]),
        row_ids=tuple(table["row_id"].to_pylist()),
        task=str(texts[0].get("task", "")),
        licence=str(texts[0].get("licence", "")),
        provenance=str(texts[0].get("provenance", "")),
        where=f"{folder} ({split})",
        encoded_images=table["image"],
        files=tuple(files),
    )


def check_same_classes(train: ImageTable, test: ImageTable) -> None:
    """Checks that both tables mean the same by a label.

    Raises:
        UserError: naming the first class that differs.
    """
    _check_same(train.class_names, test.class_names, train.where, test.where)


def _check_same(one: Sequence[str], other: Sequence[str], one_where: str, other_where: str) -> None:
    if list(one) == list(other):
        return
    pairs = enumerate(zip(one, other, strict=False))
    difference = next(
        (
            f'label {label} is "{left}" in one and "{right}" in the other'
            for label, (left, right) in pairs
            if left != right
        ),
        f"{len(one)} classes and {len(other)}",
    )
    raise UserError(
        f"{one_where} and {other_where} have different class names: {difference}. Write all files of a task in one go."
    )


def _read_file(filesystem: Any, path: str) -> tuple[Any, dict[str, Any]]:
    """Returns the checked rows and metadata of one file."""
    with (
        readable(path),
        filesystem.open_input_file(path) as stream,
        pq.ParquetFile(stream, page_checksum_verification=True) as file,
    ):
        check_columns(file.schema_arrow, path)
        texts = check_metadata(file.metadata.metadata or {}, path)
        table = file.read(columns=list(COLUMNS)).select(list(COLUMNS)).cast(_IN_MEMORY)
        check_rows(table, len(texts["class_names"]), path)
        return table, texts
