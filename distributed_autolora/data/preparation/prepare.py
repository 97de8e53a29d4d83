"""Prepares the Parquet files of each known kind of task."""

from __future__ import annotations

import re
from pathlib import Path

from distributed_autolora.data.catalog import embedded_folder
from distributed_autolora.data.decoding import decode_image
from distributed_autolora.data.parquet.reader import read_images
from distributed_autolora.data.preparation.csv_list import image_list
from distributed_autolora.data.preparation.cub_and_dogs import cub, dogs
from distributed_autolora.data.preparation.fashion_mnist import (
    FASHION_MNIST_CLASSES,
    FASHION_MNIST_LICENCE,
    fashion_mnist,
)
from distributed_autolora.data.preparation.image_folder import image_folder
from distributed_autolora.data.preparation.source import Protocol, SourceTask
from distributed_autolora.data.preparation.torchvision_datasets import caltech256, cifar, dtd
from distributed_autolora.data.preparation.write import SPLITS, Prepared, check_output, write_task
from distributed_autolora.errors import UserError

__all__ = ["Prepared", "prepare_fashion_mnist", "prepare_folder", "prepare_list", "prepare_published"]


def prepare_published(
    task: str,
    *,
    source: Path,
    output: str,
    protocol: Protocol = "clean",
    overwrite: bool = False,
    unverified: bool = False,
    test_fraction: float = 0.12,
    train_per_class: int = 150,
    clutter: bool = True,
    seed: int = 0,
) -> Prepared:
    """Writes one of the paper's six tasks from its published files.

    Args:
        task: one of `catalog.PUBLISHED`.
        source: folder of the unpacked files.
        output: folder or URI to write to.
        protocol: "clean", or "released" for the splits of the released code.
        overwrite: replace Parquet files that are there.
        unverified: CIFAR: also read files that are not the published ones.
        test_fraction: Caltech-256: share of each class held out.
        train_per_class: Caltech-256, released: images taken for each class.
        clutter: Caltech-256: keep the clutter class.
        seed: Caltech-256: seed of the held-out share.

    Raises:
        UserError: for files that are missing or cannot be used, an output that cannot be written or is in use.
    """
    source = source.expanduser().absolute()
    if not source.is_dir():
        raise UserError(f"{source} is not a folder: give the one that the files of {task} were unpacked into.")
    check_output(output, overwrite)
    if task in ("cifar10", "cifar100"):
        found = cifar(source, task=task, protocol=protocol, unverified=unverified)
    elif task == "caltech256":
        found = caltech256(
            source,
            protocol=protocol,
            test_fraction=test_fraction,
            train_per_class=train_per_class,
            clutter=clutter,
            seed=seed,
        )
    else:
        found = {"dtd": dtd, "dogs": dogs, "cub": cub}[task](source, protocol=protocol)
    return write_task(output, found, overwrite=overwrite)


def prepare_fashion_mnist(
    *,
    source: Path,
    output: str,
    classes: str,
    train_images: int | None,
    test_images: int | None,
    seed: int,
    overwrite: bool,
    without_shipped: bool = False,
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
        without_shipped: leave out every image whose pixels are those of an image shipped with the package, and say so
            in the task's name.

    Raises:
        UserError: for unknown classes, missing or damaged files, an output that cannot be written or is in use.
    """
    labels = _parse_classes(classes)
    limits = {"train": train_images, "test": test_images}
    folder = source.expanduser()
    shipped = _shipped_pixels() if without_shipped else frozenset()
    rows = {
        split: fashion_mnist(
            folder,
            split,
            classes=labels,
            limit=limits[split],
            seed=seed,
            left_out=(lambda pixels: pixels.tobytes() in shipped) if without_shipped else None,
        )
        for split in SPLITS
    }
    chosen = {split: "all images" if limits[split] is None else f"{limits[split]} images" for split in SPLITS}
    task = SourceTask(
        task=f"fashion-mnist-{classes}{'-other' if without_shipped else ''}",
        class_names=[FASHION_MNIST_CLASSES[label] for label in labels],
        rows=rows,
        licence=FASHION_MNIST_LICENCE,
        provenance="Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017, https://github.com/zalandoresearch/fashion-mnist): "
        f"classes {classes}; {chosen['train']} of the training file, {chosen['test']} of the test file, stratified, "
        f"seed {seed}{'; without the images that are shipped with the package' if without_shipped else ''}",
    )
    return write_task(output, task, overwrite=overwrite)


def _shipped_pixels() -> frozenset[bytes]:
    """Returns the pixels of every shipped image, of both splits: bytes in the order of [28, 28]."""
    tables = [read_images(embedded_folder(), split) for split in SPLITS]
    return frozenset(
        decode_image(table.encoded(row), channels=1).tobytes() for table in tables for row in range(len(table))
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
    found = SourceTask(
        task=task or images.root.name,
        class_names=images.class_names,
        rows={split: images.rows(split) for split in SPLITS},
        licence=licence,
        provenance=f'folder "{images.root.name}", {images.how_split}',
        notes=images.notes,
    )
    return write_task(output, found, overwrite=overwrite)


def prepare_list(
    *,
    source: Path,
    output: str,
    test_fraction: float,
    task: str | None,
    licence: str,
    seed: int,
    overwrite: bool,
) -> Prepared:
    """Writes the images that a CSV file of path, label and possibly split names; arguments as `prepare_folder`'s.

    Raises:
        UserError: for a list that cannot be used (see `image_list`), images that cannot be decoded, an output that
            cannot be written or is in use.
    """
    path = source.expanduser().absolute()
    found = image_list(path, test_fraction=test_fraction, seed=seed, task=task, licence=licence)
    return write_task(output, found, overwrite=overwrite)


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
