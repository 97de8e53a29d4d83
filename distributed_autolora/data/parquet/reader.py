"""Reads the Parquet files of labelled images, at once or one row group at a time."""

import bisect
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from distributed_autolora.data.parquet.checks import check_columns, check_metadata, check_rows, check_same_names
from distributed_autolora.data.parquet.hub_layout import hub_metadata, is_hub_layout, read_hub_rows
from distributed_autolora.data.parquet.locations import HOW_TO_WRITE, readable, split_files, unpacked_bytes
from distributed_autolora.errors import UserError

# In memory offsets have 64 bits, so that no file is too large for one chunk.
IN_MEMORY = pa.schema([("image", pa.large_binary()), ("label", pa.int64()), ("row_id", pa.large_string())])


@dataclass(frozen=True)
class ImageTable:
    """The rows of one split, still encoded; positions in it are the stable rows of a run."""

    labels: Tensor
    """int64 [n]."""
    class_names: tuple[str, ...]
    row_id_column: Any
    """pyarrow ChunkedArray of n texts, in memory or mapped from a file."""
    texts: dict[str, Any]
    """The JSON values of the first file's metadata."""
    where: str
    """The folder and split, for messages."""
    encoded_images: Any
    """pyarrow ChunkedArray of n encoded images, in memory or mapped from a file."""
    fingerprints: Tensor
    """int64 [n]: 64 bits of the hash of the encoded bytes; equal bytes have equal ones."""
    files: tuple[tuple[int, str], ...]
    """First row and path of each file that the rows came from."""

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.labels)

    @property
    def row_ids(self) -> tuple[str, ...]:
        """All row ids, as texts of their own; `row_id` returns one of millions."""
        return tuple(self.row_id_column.to_pylist())

    @property
    def protocol(self) -> str:
        """ "released" for splits that repeat those of the released code with their faults, otherwise "clean"."""
        return protocol_of(self.texts)

    @property
    def card(self) -> dict[str, Any]:
        """JSON values: at least task, licence and provenance ("" where its files do not say), protocol and classes."""
        known: dict[str, Any] = {key: str(self.texts.get(key, "")) for key in ("task", "licence", "provenance")}
        known |= {"protocol": self.protocol, "classes": len(self.class_names)}
        stated = self.texts.get("card")
        return known | (stated if isinstance(stated, dict) else {})

    def encoded(self, row: int) -> bytes:
        """Returns the encoded bytes of one image."""
        return self.encoded_images[row].as_py()  # type: ignore[no-any-return]

    def row_id(self, row: int) -> str:
        """Returns the stable name of one row."""
        return str(self.row_id_column[row].as_py())

    def place(self, row: int) -> str:
        """Returns 'FILE, row R (row_id "ID")' for messages; R counts from 0 in that file."""
        first, path = self.files[bisect.bisect_right(self.files, row, key=lambda file: file[0]) - 1]
        return place(path, row - first, self.row_id(row))


@dataclass(frozen=True)
class RowGroup:
    """Some neighbouring rows of a file, checked."""

    path: str
    first: int
    """Position in the file of the first of these rows."""
    rows: Any
    """pyarrow Table with the columns of `IN_MEMORY`."""
    texts: dict[str, Any]
    """The JSON values of the file's metadata."""


def place(path: str, row: int, row_id: str) -> str:
    """Returns 'FILE, row R (row_id "ID")' for messages."""
    return f'{path}, row {row} (row_id "{row_id}")'


def protocol_of(texts: dict[str, Any]) -> str:
    """Returns the protocol that a file's metadata states; "clean" where it states none."""
    return "released" if texts.get("protocol") == "released" else "clean"


def with_protocol(task: str, protocol: str) -> str:
    """Returns a task's name, with the protocol behind it unless that is "clean" or there already."""
    return task if protocol == "clean" or task.endswith(f"-{protocol}") else f"{task}-{protocol}"


def fingerprint(encoded: bytes) -> int:
    """Returns 64 bits of the hash of an image's bytes, as a signed number."""
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little", signed=True)


def row_groups(folder: str, split: str, columns: Sequence[str] = IN_MEMORY.names) -> Iterator[RowGroup]:
    """Reads the row groups of all files `<split>*.parquet` of a folder or URI one by one, in the order of their names.

    The rows are checked where all columns are read.

    Raises:
        UserError: for a missing folder or file, a damaged file, missing columns or class names, labels that
            name no class; says which file and row.
    """
    filesystem, paths = split_files(folder, split)
    first_names: list[str] | None = None
    for path in paths:
        for group in _file_groups(filesystem, path, columns):
            first_names = first_names or group.texts["class_names"]
            check_same_names(first_names, group.texts["class_names"], paths[0], path)
            yield group


def shown_row_groups(folder: str, split: str) -> Iterator[RowGroup]:
    """Reads as `row_groups`, and shows how many MB of images were read."""
    from distributed_autolora.progress import ProgressBar  # benchmarks/gpu_check.py reads images without rich

    done = 0
    with ProgressBar(f"{split}: MB", math.ceil(unpacked_bytes(folder, split) / 1e6), log=True) as bar:
        for group in row_groups(folder, split):
            yield group
            done += group.rows.nbytes
            bar.show(done / 1e6)


def read_images(folder: str, split: str) -> ImageTable:
    """Reads all files `<split>*.parquet` of a folder or URI into memory, in the order of their names.

    Raises:
        UserError: see `row_groups`.
    """
    read = _read(folder, split, IN_MEMORY.names)
    prints = [fingerprint(image.as_buffer()) for chunk in read.rows["image"].chunks for image in chunk]
    return image_table(read.rows, torch.tensor(prints), read.texts, f"{folder} ({split})", read.files)


def image_table(
    rows: Any, fingerprints: Tensor, texts: dict[str, Any], where: str, files: Sequence[tuple[int, str]]
) -> ImageTable:
    """Returns the table of rows: a pyarrow Table or a dict with the columns of `IN_MEMORY`."""
    return ImageTable(
        labels=torch.from_numpy(rows["label"].to_numpy().copy()),
        class_names=tuple(texts["class_names"]),
        row_id_column=rows["row_id"],
        texts=texts,
        where=where,
        encoded_images=rows["image"],
        fingerprints=fingerprints,
        files=tuple(files),
    )


@dataclass(frozen=True)
class Labels:
    """The columns of a split, all or without the images."""

    rows: Any
    """pyarrow Table."""
    texts: dict[str, Any]
    """The JSON values of the first file's metadata."""
    files: tuple[tuple[int, str], ...]
    """First row and path of each file."""


def read_labels(folder: str, split: str) -> Labels:
    """Reads labels and row ids of a split, not its images.

    Raises:
        UserError: for a missing folder or file, a damaged file, missing class names.
    """
    return _read(folder, split, [name for name in IN_MEMORY.names if name != "image"])


def _read(folder: str, split: str, columns: Sequence[str]) -> Labels:
    groups = list(row_groups(folder, split, columns))
    files, count = [], 0
    for group in groups:
        if group.first == 0:
            files.append((count, group.path))
        count += len(group.rows)
    return Labels(pa.concat_tables([group.rows for group in groups]), groups[0].texts, tuple(files))


def read_texts(folder: str, split: str) -> dict[str, Any]:
    """Returns the JSON values of the metadata of a split's first file, without reading its images.

    Raises:
        UserError: for a missing folder or file, a damaged file, missing class names.
    """
    return next(row_groups(folder, split, ["label"])).texts


def check_same_classes(train: ImageTable, test: ImageTable) -> None:
    """Checks that both tables have the same classes.

    Raises:
        UserError: naming the first class that differs.
    """
    check_same_names(train.class_names, test.class_names, train.where, test.where)


def _file_groups(filesystem: Any, path: str, columns: Sequence[str]) -> Iterator[RowGroup]:
    schema = pa.schema([IN_MEMORY.field(name) for name in columns])
    with readable(path):
        stream = filesystem.open_input_file(path)
    with stream:
        with readable(path):
            file = pq.ParquetFile(stream, page_checksum_verification=True)
        of_hub, raw = is_hub_layout(file.schema_arrow), file.metadata.metadata or {}
        if not of_hub:
            check_columns(file.schema_arrow, path)
        texts = check_metadata(hub_metadata(raw) if of_hub else raw, path)
        if file.metadata.num_rows == 0:
            raise UserError(f"{path} holds no image. {HOW_TO_WRITE}.")
        first = 0
        for group in range(file.num_row_groups):
            with readable(path):
                if of_hub:
                    rows = read_hub_rows(file, group, schema.names, path, first)
                else:
                    rows = file.read_row_group(group, columns=schema.names).select(schema.names)
                rows = rows.cast(schema)
            if "image" in columns:
                check_rows(rows, len(texts["class_names"]), path, first)
            if len(rows):
                yield RowGroup(path, first, rows, texts)
            first += len(rows)
