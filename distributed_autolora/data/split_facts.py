"""What is known about the files of one split once every image was decoded."""

import bisect
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from distributed_autolora.data.decoding import ImageDecodeError, ImageFacts, inspect_image
from distributed_autolora.data.images import different_sizes
from distributed_autolora.data.parquet.reader import RowGroup, fingerprint, place, shown_row_groups


@dataclass
class SplitFacts:
    """Facts about the files of one split, without its images."""

    split: str
    where: str
    """The folder and split, for messages."""
    class_names: tuple[str, ...] = ()
    texts: dict[str, Any] = field(default_factory=dict)
    """The JSON values of the first file's metadata."""
    labels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """int64 [n]."""
    fingerprints: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """int64 [n]; equal for equal bytes."""
    row_ids: Any = field(default_factory=lambda: pa.chunked_array([], pa.large_string()))
    """pyarrow ChunkedArray of n texts."""
    files: list[tuple[int, str]] = field(default_factory=list)
    """First row and path of each file."""
    failures: list[str] = field(default_factory=list)
    """Place and reason of each image that cannot be decoded."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Number of images of each kind of `decoding.CONVERSIONS`."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Number of images of each (width, height)."""
    odd_size: str | None = None
    """Message about the first image whose size is not that of row 0."""
    image_bytes: int = 0

    def place(self, row: int) -> str:
        """Returns file, row and row id of an image, for messages."""
        first, path = self.files[bisect.bisect_right(self.files, row, key=lambda file: file[0]) - 1]
        return place(path, row - first, self.row_ids[row].as_py())

    def class_counts(self) -> list[int]:
        """Returns the number of images of each class."""
        return torch.bincount(self.labels, minlength=len(self.class_names)).tolist()


def look(folder: str, split: str, workers: ThreadPoolExecutor) -> SplitFacts:
    """Decodes every image of a split, one row group in memory at a time.

    Raises:
        UserError: for files that cannot be read, and labels out of range.
    """
    facts = SplitFacts(split, f"{folder} ({split})")
    labels, prints, row_ids, count = [], [], [], 0
    for group in shown_row_groups(folder, split):
        facts.texts = facts.texts or group.texts
        if group.first == 0:
            facts.files.append((count, group.path))
        count += len(group.rows)
        labels.append(torch.from_numpy(group.rows["label"].to_numpy().copy()))
        row_ids += group.rows["row_id"].chunks
        images = group.rows["image"].to_pylist()
        prints.append(torch.tensor([fingerprint(image) for image in images]))
        facts.image_bytes += sum(map(len, images))
        for row, seen in enumerate(workers.map(_inspect, images)):
            _note(facts, group, row, seen)
    facts.class_names = tuple(facts.texts["class_names"])
    facts.labels, facts.fingerprints, facts.row_ids = torch.cat(labels), torch.cat(prints), pa.chunked_array(row_ids)
    return facts


def _inspect(image: bytes) -> ImageFacts | str:
    try:
        return inspect_image(image)
    except ImageDecodeError as error:
        return str(error)


def _note(facts: SplitFacts, group: RowGroup, row: int, seen: ImageFacts | str) -> None:
    if isinstance(seen, str):
        facts.failures.append(f"{_place(group, row)}: {seen}")
        return
    facts.kinds.update(seen.kinds)
    first = next(iter(facts.sizes), seen.size)
    facts.sizes[seen.size] += 1
    if seen.size != first and facts.odd_size is None:
        facts.odd_size = different_sizes(_place(group, row), seen.size, first)


def _place(group: RowGroup, row: int) -> str:
    return place(group.path, group.first + row, group.rows["row_id"][row].as_py())
