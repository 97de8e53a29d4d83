"""A collection of images before it is written as Parquet files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from distributed_autolora.data.splits import stratified_holdout
from distributed_autolora.errors import UserError, is_utf8

SPLITS = ("train", "test")

Protocol = Literal["clean", "released"]


@dataclass(frozen=True, slots=True)  # there are millions of them
class SourceRow:
    """One labelled image that is not read yet."""

    load: Callable[[], bytes]
    """Returns the encoded file; raises OSError when it cannot be read."""
    label: int
    """Index into the class names."""
    row_id: str
    """Where the image comes from in its collection; never changes."""
    where: str
    """The image's file, for messages."""


@dataclass(frozen=True)
class SourceTask:
    """A collection as a task of two splits."""

    task: str
    class_names: Sequence[str]
    rows: Mapping[str, Sequence[SourceRow]]
    """For "train" and "test"."""
    licence: str
    provenance: str
    overlaps: tuple[str, ...] = ()
    """Other collections, or parts of this one, that are known to hold the same or nearly the same images."""
    notes: tuple[str, ...] = ()
    """One line each."""
    protocol: Protocol = "clean"
    seen: int | None = None
    """Files or lines of the source, counted before any was sorted out; None: those of `rows` alone."""
    not_used: int = 0
    """How many of these are no rows; `notes` say why."""


def file_row(path: Path, label: int, row_id: str) -> SourceRow:
    """Returns the row of an image file.

    Raises:
        UserError: for a name that is not UTF-8, as files from old archives have.
    """
    if not is_utf8(row_id):
        raise UserError(f"The name of {str(path)!a} is not UTF-8: rename the file (convmv does so for a folder).")
    where = str(path)
    return SourceRow(partial(_read, where), label, row_id, where)


class FileRows(Sequence[SourceRow]):
    """Rows of image files below a folder, made when they are taken: there may be millions.

    Args:
        files: path below the folder, which is the row id, and label of each.

    Raises:
        UserError: as `file_row`.
    """

    def __init__(self, folder: Path, files: Sequence[tuple[str, int]]) -> None:
        self._folder, self._files = folder, files
        for name, label in files:
            if not is_utf8(name):
                file_row(folder / name, label, name)

    def __len__(self) -> int:
        """Returns the number of files."""
        return len(self._files)

    def __getitem__(self, position: Any) -> Any:
        """Returns the row of a file."""
        name, label = self._files[position]
        return file_row(self._folder / name, label, name)


def _read(where: str) -> bytes:
    path = Path(where)
    if path.exists() and not path.is_file():  # reading a pipe would never end
        raise OSError("it is no file")
    return path.read_bytes()


def held_out(labels: Sequence[int], test_fraction: float, seed: int) -> tuple[list[int], list[int], str]:
    """Returns ascending positions to train on and, a stratified share, to test on, and a text for the provenance.

    Raises:
        UserError: for a share outside (0, 1), or one that leaves nothing to test on.
    """
    if not 0 < test_fraction < 1:
        raise UserError(f"The test fraction is {test_fraction}: it must be between 0 and 1, for instance 0.2.")
    test = stratified_holdout(torch.tensor(labels), round(test_fraction * len(labels)), seed)
    if not len(test):
        raise UserError(f"{len(labels)} images are too few to hold out {test_fraction:.0%} for testing: add some.")
    is_train = torch.ones(len(labels), dtype=torch.bool)
    is_train[test] = False
    return is_train.nonzero().flatten().tolist(), test.tolist(), f"test share {test_fraction}, stratified, seed {seed}"


def count_notes(rows: Mapping[str, Sequence[SourceRow]], official: dict[str, int]) -> tuple[str, ...]:
    """Returns a note for each split whose number of images is not that of the published collection."""
    return tuple(
        f"the published collection has {count:,} {split} images, this one {len(rows[split]):,}"
        for split, count in official.items()
        if len(rows[split]) != count
    )
