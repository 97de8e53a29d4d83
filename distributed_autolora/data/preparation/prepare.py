"""Prepares the Parquet files of each known kind of task."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

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
from distributed_autolora.data.preparation.source import SPLITS, Protocol, SourceTask
from distributed_autolora.data.preparation.torchvision_datasets import caltech256, cifar, dtd
from distributed_autolora.data.preparation.write import Prepared, check_output, write_task
from distributed_autolora.errors import UserError

__all__ = ["Prepared", "image_folder", "image_list", "prepare_fashion_mnist", "prepare_own", "prepare_published"]


PUBLISHED: dict[str, Callable[..., SourceTask]] = {
    "cifar10": partial(cifar, task="cifar10"),
    "cifar100": partial(cifar, task="cifar100"),
    "caltech256": caltech256,
    "dtd": dtd,
    "dogs": dogs,
    "cub": cub,
}
"""Readers of the paper's six tasks."""


def prepare_published(
    task: str, *, source: Path, output: str, protocol: Protocol = "clean", overwrite: bool = False, **options: Any
) -> Prepared:
    """Writes one of the paper's six tasks from its published files.

    Args:
        task: key of `PUBLISHED`.
        source: folder of the unpacked files.
        output: folder or URI to write to.
        protocol: "clean", or "released" for the splits of the authors' code.
        overwrite: replace existing Parquet files.
        options: further arguments of the reader.

    Raises:
        UserError: for missing or unusable files, an output that cannot be written or is in use.
    """
    source = source.expanduser().absolute()
    if not source.is_dir():
        raise UserError(f"{source} is not a folder: give the one that the files of {task} were unpacked into.")
    check_output(output, overwrite)
    return write_task(output, PUBLISHED[task](source, protocol=protocol, **options), overwrite=overwrite)


def prepare_own(
    read: Callable[..., SourceTask], *, source: Path, output: str, overwrite: bool, **options: Any
) -> Prepared:
    """Writes one's own images: `read` is `image_folder` or `image_list`, which take the options.

    Raises:
        UserError: for images that cannot be used, an output that cannot be written or is in use.
    """
    return write_task(output, read(source.expanduser().absolute(), **options), overwrite=overwrite)


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
