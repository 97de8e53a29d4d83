"""What a reader of an image collection gives to the writer of Parquet files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Protocol = Literal["clean", "released"]


@dataclass(frozen=True)
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
    """What people should know, one line each."""
    protocol: Protocol = "clean"


def file_row(path: Path, label: int, row_id: str) -> SourceRow:
    """Returns the row of an image file."""
    return SourceRow(path.read_bytes, label, row_id, str(path))


def count_notes(rows: Mapping[str, Sequence[SourceRow]], official: dict[str, int]) -> tuple[str, ...]:
    """Returns a note for each split whose number of images is not that of the published collection."""
    return tuple(
        f"the published collection has {count:,} {split} images, this one {len(rows[split]):,}"
        for split, count in official.items()
        if len(rows[split]) != count
    )
