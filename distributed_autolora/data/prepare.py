"""Writes the Parquet files of a task from Fashion-MNIST or a folder of images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from distributed_autolora.data.image_folders import image_folder
from distributed_autolora.data.parquet import ImageRow, write_images
from distributed_autolora.data.sources import FASHION_MNIST_CLASSES, FASHION_MNIST_LICENCE, fashion_mnist
from distributed_autolora.data.storage import existing_files, is_uri, remove_files
from distributed_autolora.errors import UserError

SPLITS = ("train", "test")


@dataclass(frozen=True)
class WrittenSplit:
    """What was written for one split."""

    split: str
    images: int
    classes: int
    image_bytes: int
    """Bytes of the encoded images."""


@dataclass(frozen=True)
class Prepared:
    """What was written for a task, for people."""

    output: str
    """The folder or URI; a local path is absolute."""
    splits: tuple[WrittenSplit, ...]
    notes: tuple[str, ...]

    def table(self) -> str:
        """Returns the splits as an aligned table, with the notes below it."""
        lines = [f"{'split':<6} {'images':>8} {'classes':>8} {'bytes':>14}"]
        lines += [f"{one.split:<6} {one.images:>8,} {one.classes:>8} {one.image_bytes:>14,}" for one in self.splits]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes), f"Written to {self.output}"])


def prepare_fashion_mnist(
    *,
    source: Path,
    output: str,
    classes: str,
    train_images: int | None,
    test_images: int | None,
    seed: int,
    overwrite: bool,
) -> Prepared:
    """Writes some classes of Fashion-MNIST, or a stratified subset of them.

    Args:
        source: folder of the IDX files.
        output: folder or URI to write train.parquet and test.parquet to.
        classes: official labels, such as "5-9" or "1,3,8".
        train_images: number of training images; None: all.
        test_images: number of test images; None: all.
        seed: seed of the subsets.
        overwrite: replace Parquet files that are there.

    Raises:
        UserError: for unknown classes, missing or damaged files, an output that cannot be written or is in use.
    """
    labels = _parse_classes(classes)
    limits = {"train": train_images, "test": test_images}
    folder = source.expanduser()
    rows = {split: fashion_mnist(folder, split, classes=labels, limit=limits[split], seed=seed) for split in SPLITS}
    chosen = {split: "all images" if limits[split] is None else f"{limits[split]} images" for split in SPLITS}
    return _write_task(
        output,
        lambda split: rows[split],
        class_names=[FASHION_MNIST_CLASSES[label] for label in labels],
        task=f"fashion-mnist-{classes}",
        licence=FASHION_MNIST_LICENCE,
        provenance="Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017, https://github.com/zalandoresearch/fashion-mnist): "
        f"classes {classes}; {chosen['train']} of the training file, {chosen['test']} of the test file, stratified, "
        f"seed {seed}",
        notes=(),
        overwrite=overwrite,
    )


def prepare_folder(
    *,
    source: Path,
    output: str,
    test_fraction: float,
    task: str | None,
    licence: str,
    seed: int,
    overwrite: bool,
) -> Prepared:
    """Writes the images of a folder, one folder a class, with their bytes as they are.

    Args:
        source: the folder; train/ and test/ below it are used where both exist.
        output: folder or URI to write train.parquet and test.parquet to.
        test_fraction: share of each class to hold out for testing where there is no test/.
        task: name of the task; None: the folder's.
        licence: terms that the images may be used under.
        seed: seed of the held-out share.
        overwrite: replace Parquet files that are there.

    Raises:
        UserError: for a folder that is no task (see `image_folder`), images that cannot be decoded, an output
            that cannot be written or is in use.
    """
    images = image_folder(source.expanduser().absolute(), test_fraction=test_fraction, seed=seed)
    _check_output(output, overwrite)
    images.check_decodable()
    return _write_task(
        output,
        images.rows,
        class_names=images.class_names,
        task=task or images.root.name,
        licence=licence,
        provenance=f'folder "{images.root.name}", {images.how_split}',
        notes=images.notes,
        overwrite=overwrite,
    )


def _write_task(
    output: str,
    rows: Callable[[str], Iterator[ImageRow]],
    *,
    class_names: Sequence[str],
    task: str,
    licence: str,
    provenance: str,
    notes: tuple[str, ...],
    overwrite: bool,
) -> Prepared:
    folder = output if is_uri(output) else str(Path(output).expanduser().absolute())
    # Old files go first: train and test of two tasks never lie side by side, whenever this is interrupted.
    remove_files(folder, _check_output(folder, overwrite))
    written = []
    for split in SPLITS:
        counter = _Counter()
        write_images(
            f"{folder}/{split}.parquet",
            counter.count(rows(split)),
            class_names=class_names,
            task=task,
            split=split,
            licence=licence,
            provenance=provenance,
        )
        written.append(WrittenSplit(split, counter.images, len(counter.labels), counter.image_bytes))
    return Prepared(folder, tuple(written), notes)


class _Counter:
    """Counts rows on their way into a file."""

    def __init__(self) -> None:
        self.images = 0
        self.image_bytes = 0
        self.labels: set[int] = set()

    def count(self, rows: Iterator[ImageRow]) -> Iterator[ImageRow]:
        for row in rows:
            self.images += 1
            self.image_bytes += len(row.image)
            self.labels.add(row.label)
            yield row


def _check_output(output: str, overwrite: bool) -> list[str]:
    """Returns the Parquet files that will be replaced."""
    existing = existing_files(output)
    if existing and not overwrite:
        names = ", ".join(path.rpartition("/")[2] for path in existing)
        raise UserError(f"{output} already holds {names}: give --overwrite to replace them, or another --output.")
    return existing


def _parse_classes(text: str) -> list[int]:
    """Reads "5-9" or "1,3,8"."""
    labels: list[int] = []
    if re.fullmatch("[0-9]-[0-9]", text):
        labels = list(range(int(text[0]), int(text[2]) + 1))
    elif re.fullmatch("[0-9](,[0-9])*", text):
        labels = [int(part) for part in text.split(",")]
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise UserError(f'--classes is "{text}": give two or more of 0 .. 9, such as 5-9 or 1,3,8.')
    return labels
