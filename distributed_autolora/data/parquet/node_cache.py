"""Encoded images of a split in one memory-mapped file a node, so that no worker holds them all."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from distributed_autolora.data.parquet import reader
from distributed_autolora.data.parquet.digest import data_digest
from distributed_autolora.data.parquet.locations import one_line
from distributed_autolora.data.parquet.reader import IN_MEMORY, ImageTable, fingerprint
from distributed_autolora.errors import StorageError, UserError
from distributed_autolora.files import sync

_SCHEMA = pa.schema([*IN_MEMORY, ("fingerprint", pa.int64())])
_CHOOSE = "Choose another folder with --scaling.cache."


@dataclass(frozen=True)
class MappedImages:
    """Images in a memory-mapped file, checked whenever one is read."""

    path: Path
    images: Any
    """pyarrow ChunkedArray of n encoded images, mapped from the file."""
    fingerprints: torch.Tensor
    """int64 [n]."""

    def __getitem__(self, row: int) -> Any:
        """Returns the pyarrow scalar of an image.

        Raises:
            UserError: for bytes that are not those which were written; the file is removed.
        """
        image = self.images[row]
        if fingerprint(image.as_buffer()) != int(self.fingerprints[row]):
            self.path.unlink(missing_ok=True)
            raise UserError(
                f"{self.path} was damaged at row {row} and has been removed: the same command writes it again. "
                f"If this returns, the disk is failing. {_CHOOSE}"
            )
        return image


def cache_folder(configured: str | None) -> Path:
    """Returns the folder of the mapped files, made for this user alone where it is missing.

    Unless it is configured it is "distributed_autolora-<uid>" in the system's temporary folder.

    Raises:
        UserError: if it cannot be made, or the default one belongs to somebody else.
    """
    default = Path(tempfile.gettempdir(), f"distributed_autolora-{os.getuid()}")
    folder = default if configured is None else Path(configured).expanduser().absolute()
    with _usable(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.stat().st_uid
    # Anybody may have made a folder of this name in the temporary folder, and could change what we read.
    if configured is None and owner != os.getuid():
        raise UserError(f"The cache folder {folder} belongs to another user. {_CHOOSE}")
    return folder


def mapped_images(folder: str, split: str, *, digest: str | None, cache: str | None) -> ImageTable:
    """Reads a split with its images mapped from this node's cache, which is written first where it is missing.

    One process writes, the others wait for it; a file that cannot be opened is written again.

    Args:
        digest: SHA-256 of the files (`data_digest`), which names the cached file; None: it is computed.
        cache: folder of the mapped files; None: see `cache_folder`.

    Raises:
        UserError: for Parquet files that cannot be used or are not those of the digest, and for a cache folder that
            cannot be written or is full.
    """
    digest = digest or data_digest(folder)
    path = cache_folder(cache) / f"{digest[:32]}-{split}.arrow"
    labels = reader.read_labels(folder, split)
    table = _open(path, len(labels.rows))
    if table is None:
        with _usable(path), path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it when this process ends
            table = _open(path, len(labels.rows))  # another process may have written it meanwhile
            if table is None:
                _write(path, folder, split, digest)
                table = _open(path, len(labels.rows))
    if table is None:
        raise UserError(f"{path} cannot be read back after it was written. {_CHOOSE}")
    # A cached file may be older than the folder: labels of other files must not be given to its images.
    if any(not table[name].equals(labels.rows[name]) for name in labels.rows.column_names):
        raise _other_files(folder)
    prints = torch.from_numpy(table["fingerprint"].to_numpy().copy())
    # Row ids stay in the file too: labels and fingerprints alone are in memory.
    rows = {name: table[name] for name in labels.rows.column_names}
    images = MappedImages(path, table["image"], prints)
    return reader.image_table({**rows, "image": images}, prints, labels.texts, f"{folder} ({split})", labels.files)


def _other_files(folder: str) -> UserError:
    return UserError(
        f"The images in {folder} are not those that the run was created with: give this node the same files."
    )


def _open(path: Path, count: int) -> Any | None:
    try:
        with pa.memory_map(str(path)) as mapped:
            # The columns keep the mapping alive.
            table = pa.ipc.open_file(mapped).read_all()
    except (OSError, pa.ArrowException):
        return None
    return table if table.schema.equals(_SCHEMA) and len(table) == count else None


def _write(path: Path, folder: str, split: str, digest: str) -> None:
    if data_digest(folder) != digest:
        raise _other_files(folder)
    partial = path.with_suffix(".partial")
    try:
        with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
            for group in reader.row_groups(folder, split):
                rows = group.rows.combine_chunks()
                prints = [fingerprint(image.as_buffer()) for image in rows["image"]]
                writer.write_table(rows.append_column(_SCHEMA.field("fingerprint"), pa.array(prints, pa.int64())))
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _usable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        free = shutil.disk_usage(existing).free
        raise StorageError(
            f"The cache of images {path} cannot be written: {one_line(error)} ({free / 1e9:.1f} GB are free). {_CHOOSE}"
        ) from error
