"""Prepares the Parquet files of each known kind of task."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from distributed_autolora.data.catalog import embedded_folder
from distributed_autolora.data.decoding import decode_image
from distributed_autolora.data.parquet.reader import read_images
from distributed_autolora.data.preparation import flags as kinds
from distributed_autolora.data.preparation.csv_list import image_list
from distributed_autolora.data.preparation.cub_and_dogs import cub, dogs
from distributed_autolora.data.preparation.fashion_mnist import (
    FASHION_MNIST_CLASSES,
    FASHION_MNIST_LICENCE,
    fashion_mnist,
)
from distributed_autolora.data.preparation.image_folder import image_folder
from distributed_autolora.data.preparation.source import SPLITS, SourceTask
from distributed_autolora.data.preparation.torchvision_datasets import caltech256, cifar, dtd
from distributed_autolora.data.preparation.write import Prepared, check_output, write_task
from distributed_autolora.errors import UserError


def prepare(flags: kinds.Common) -> Prepared:
    """Writes the task that the flags ask for.

    Raises:
        UserError: for a source or an output that cannot be used.
    """
    flags = replace(flags, source=flags.source.expanduser().absolute())
    if isinstance(flags, kinds.Published):
        if not flags.source.is_dir():
            raise UserError(
                f"{flags.source} is not a folder: give the one that the files of {flags.recipe} were unpacked into."
            )
        check_output(flags.output, flags.overwrite)
    return write_task(flags.output, _READERS[type(flags)](flags), overwrite=flags.overwrite)


def _some_classes(flags: kinds.FashionMnist) -> SourceTask:
    labels, classes = _parse_classes(flags.classes), flags.classes
    limits = {"train": flags.train_images, "test": flags.test_images}
    tables = [read_images(embedded_folder(), split) for split in SPLITS] if flags.without_shipped else []
    encoded = [table.encoded(row) for table in tables for row in range(len(table))]
    shipped = frozenset(decode_image(image, channels=1).tobytes() for image in encoded) if tables else None
    chosen = {split: "all images" if limits[split] is None else f"{limits[split]} images" for split in SPLITS}
    return SourceTask(
        task=f"fashion-mnist-{classes}{'-other' if flags.without_shipped else ''}",
        class_names=[FASHION_MNIST_CLASSES[label] for label in labels],
        rows={
            split: fashion_mnist(
                flags.source, split, classes=labels, limit=limits[split], seed=flags.seed, left_out=shipped
            )
            for split in SPLITS
        },
        licence=FASHION_MNIST_LICENCE,
        provenance="Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017, https://github.com/zalandoresearch/fashion-mnist): "
        f"classes {classes}; {chosen['train']} of the training file, {chosen['test']} of the test file, stratified, "
        f"seed {flags.seed}"
        f"{'; without the images that are shipped with the package' if flags.without_shipped else ''}",
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


_READERS: dict[type[kinds.Common], Callable[[Any], SourceTask]] = {
    kinds.Cifar10: cifar,
    kinds.Cifar100: cifar,
    kinds.Dtd: dtd,
    kinds.Dogs: dogs,
    kinds.Cub: cub,
    kinds.Caltech256: caltech256,
    kinds.Folder: image_folder,
    kinds.ImageList: image_list,
    kinds.FashionMnist: _some_classes,
}
