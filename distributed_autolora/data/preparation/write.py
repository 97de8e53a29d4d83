"""Writes a collection as the Parquet files of a task: every image decoded once, no test image in train."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from distributed_autolora.data.class_names import too_few
from distributed_autolora.data.decoding import ImageDecodeError, decode_image, refuse_undecodable
from distributed_autolora.data.parquet.locations import (
    absolute_location,
    existing_files,
    one_line,
    remove_files,
)
from distributed_autolora.data.parquet.reader import fingerprint, with_protocol
from distributed_autolora.data.parquet.writer import (
    ROW_GROUP,
    ROW_GROUP_BYTES,
    SHARD_BYTES,
    ImageRow,
    SplitWriter,
    groups_of,
    remove_partial_files,
)
from distributed_autolora.data.preparation.claim import claim
from distributed_autolora.data.preparation.source import SPLITS, SourceRow, SourceTask
from distributed_autolora.errors import UserError
from distributed_autolora.hardware import available_cpus
from distributed_autolora.progress import shown

_MAX_SHOWN = 3
_AHEAD = 4
"""Files that are read ahead for each CPU: they are in memory at the same time."""


@dataclass
class WrittenSplit:
    """Counts of one written split."""

    split: str
    images: int = 0
    image_bytes: int = 0
    labels: Counter[int] = field(default_factory=Counter)
    """Images by label."""

    def add(self, rows: list[ImageRow]) -> None:
        """Counts rows as written."""
        self.images += len(rows)
        self.image_bytes += sum(len(row.image) for row in rows)
        self.labels.update(row.label for row in rows)


@dataclass(frozen=True)
class Prepared:
    """A written task, for the report."""

    output: str
    """The folder, absolute, or the URI."""
    splits: tuple[WrittenSplit, ...]
    card: dict[str, Any]
    """Facts about the task; kept in its files."""
    seen: str
    """Where all files of the source went, with their numbers."""

    def table(self) -> str:
        """Returns the splits as an aligned table, with the task card below it."""
        lines = [f"{'split':<6} {'images':>8} {'classes':>8} {'bytes':>14}"]
        lines += [f"{one.split:<6} {one.images:>8,} {len(one.labels):>8} {one.image_bytes:>14,}" for one in self.splits]
        lines += [f"{key}: {self.card[key]}" for key in ("task", "protocol", "licence", "provenance")]
        lines += [f"known overlap: {overlap}" for overlap in self.card["known_overlaps"]]
        notes = [f"note: {note}" for note in self.card["notes"]]
        return "\n".join([*lines, *notes, self.seen, f"Written to {self.output}"])


def write_task(output: str, source: SourceTask, *, overwrite: bool, shard_bytes: int = SHARD_BYTES) -> Prepared:
    """Writes both splits and a task card atomically; images keep their bytes.

    Training images that are also test images, byte for byte, are left out unless the protocol is "released".
    """
    folder = absolute_location(output)
    check_output(folder, overwrite)
    names, clean = list(source.class_names), source.protocol == "clean"
    written = {split: WrittenSplit(split) for split in SPLITS}
    seen: set[int] = set()
    left_out: list[str] = []
    failures: list[str] = []
    writers = {split: SplitWriter(folder, split, len(names), shard_bytes=shard_bytes) for split in SPLITS}
    with claim(folder) as check_claim, writers["train"], writers["test"]:
        remove_partial_files(folder)
        # The test split comes first, so that it is known when the training images pass by.
        for split in reversed(SPLITS):
            for group, failed in _loaded(source.rows[split], split):
                failures += failed
                if split == "test":
                    seen.update(fingerprint(row.image) for row in group)
                copies = seen if split == "train" and clean else ()
                left_out += [row.row_id for row in group if fingerprint(row.image) in copies]
                kept = [row for row in group if fingerprint(row.image) not in copies]
                if kept and not failures:
                    writers[split].write(kept)
                    written[split].add(kept)
        # There is no file yet that the check could list the others of.
        refuse_undecodable(failures, shown=None)
        _check_rows_left(folder, source, written)
        accounts = _seen(source, written, len(left_out))
        card = _card(source, written, left_out)
        texts = {"class_names": names, **{key: card[key] for key in ("task", "protocol", "licence", "provenance")}}
        check_claim()
        # Old files go first: train and test of two tasks never lie side by side, whenever this is interrupted.
        remove_files(folder, check_output(folder, overwrite))
        for split in SPLITS:
            writers[split].finish({**texts, "split": split, "card": card})
    return Prepared(folder, tuple(written.values()), card, accounts)


def check_output(output: str, overwrite: bool) -> list[str]:
    """Returns the Parquet files that will be replaced.

    Raises:
        UserError: if there are any without `overwrite`, or the folder cannot be made.
    """
    existing = existing_files(output)
    if existing and not overwrite:
        names = ", ".join(path.rpartition("/")[2] for path in existing)
        raise UserError(f"{output} already holds {names}: give --overwrite to replace them, or another --output.")
    return existing


def _loaded(rows: Sequence[SourceRow], split: str) -> Iterator[tuple[list[ImageRow], list[str]]]:
    """Yields the images of up to `ROW_GROUP` rows or `ROW_GROUP_BYTES`, and "PLACE: REASON" of undecodable ones."""
    cpus = available_cpus()
    images: list[ImageRow] = []
    failed: list[str] = []
    size = 0
    with ThreadPoolExecutor(cpus) as workers:
        for some_rows in groups_of(shown(rows, f"{split}: image"), _AHEAD * cpus):
            for result in workers.map(_load, some_rows):
                if isinstance(result, str):
                    failed.append(result)
                else:
                    images.append(result)
                    size += len(result.image)
                if len(images) + len(failed) == ROW_GROUP or size >= ROW_GROUP_BYTES:
                    yield images, failed
                    images, failed, size = [], [], 0
    if images or failed:
        yield images, failed


def _load(row: SourceRow) -> ImageRow | str:
    try:
        image = row.load()
        decode_image(image, channels=3)
    except (ImageDecodeError, OSError) as error:
        return f"{row.where}: {one_line(error)}"
    return ImageRow(image, row.label, row.row_id)


def _check_rows_left(folder: str, source: SourceTask, written: dict[str, WrittenSplit]) -> None:
    for split, one in written.items():
        if one.images == 0:
            raise UserError(f"Nothing is left to write for {split} to {folder}: the source has no other images for it.")
    if source.protocol == "clean" and (line := too_few(source.class_names, written["train"].labels, "the source")):
        raise UserError(line)


def _seen(source: SourceTask, written: dict[str, WrittenSplit], left_out: int) -> str:
    kept = sum(one.images for one in written.values())
    seen = kept + left_out + source.not_used
    assert source.seen in (None, seen), f"{source.seen} files were seen, but {seen} are accounted for"
    return f"seen: {seen:,} = {kept:,} written + {left_out:,} left out of train + {source.not_used:,} not used"


def _card(source: SourceTask, written: dict[str, WrittenSplit], left_out: list[str]) -> dict[str, Any]:
    notes = list(source.notes)
    if left_out:
        more = ", ..." if len(left_out) > _MAX_SHOWN else ""
        notes.append(
            f"left out of train: {len(left_out)} images that are also test images ({', '.join(left_out[:_MAX_SHOWN])}"
            f"{more})"
        )
    if source.protocol == "released":
        notes.append("the released splits, faults included: name the protocol wherever a number from them is shown")
    return {
        "task": with_protocol(source.task, source.protocol),
        "protocol": source.protocol,
        "classes": len(source.class_names),
        "images": {split: one.images for split, one in written.items()},
        "licence": source.licence,
        "provenance": source.provenance,
        "known_overlaps": list(source.overlaps),
        "notes": notes,
    }
