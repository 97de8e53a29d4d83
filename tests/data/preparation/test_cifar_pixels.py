"""CIFAR in its published layout, written from PNG files: prepared and read back, every pixel of every image.

The images are drawn ones, or the real ones of a folder that CIFAR_IMAGES names: cifar10/train/CLASS/*.png,
cifar10/test/CLASS/*.png and cifar100/..., of which either may be missing, and so may test.
"""

import os
import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from distributed_autolora.data.decoding import decode_image
from distributed_autolora.data.parquet.reader import read_images
from distributed_autolora.data.preparation.flags import Cifar10, Cifar100
from distributed_autolora.data.preparation.prepare import prepare
from tests.data.pictures import encode, picture

IMAGES = os.environ.get("CIFAR_IMAGES")


class Layout(NamedTuple):
    """Names of the published Python version's files and of what is in them."""

    kind: type[Cifar10]
    folder: str
    train: tuple[str, ...]
    test: str
    labels: str
    meta: str
    names: str


LAYOUTS = {
    "cifar10": Layout(
        Cifar10,
        "cifar-10-batches-py",
        tuple(f"data_batch_{n}" for n in range(1, 6)),
        "test_batch",
        "labels",
        "batches.meta",
        "label_names",
    ),
    "cifar100": Layout(Cifar100, "cifar-100-python", ("train",), "test", "fine_labels", "meta", "fine_label_names"),
}


def drawn(folder: Path, classes: int = 10) -> Path:
    for label in range(classes):
        for split, number in (("train", 6), ("test", 2)):
            (folder / split / f"class-{label}").mkdir(parents=True)
            for image in range(number):
                pixels = picture(1000 * label + 10 * image + len(split), (32, 32))
                (folder / split / f"class-{label}" / f"{image}.png").write_bytes(encode(pixels))
    return folder


def splits_of(folder: Path) -> tuple[list[Path], list[Path]]:
    """Returns the files to train and to test on in a mixed order; without test images every tenth one is."""
    train, test = (sorted((folder / split).glob("*/*.png")) for split in ("train", "test"))
    if not test:
        train, test = [path for n, path in enumerate(train) if n % 10], train[::10]
    return [train[n] for n in np.random.default_rng(0).permutation(len(train))], test


def row_of(path: Path) -> NDArray[np.uint8]:
    """Returns an image as the published files have it: all red values row by row, then green, then blue."""
    pixels = np.asarray(Image.open(path))
    assert pixels.shape == (32, 32, 3)
    return np.concatenate([pixels[:, :, channel].ravel() for channel in range(3)])


def write_published(layout: Layout, root: Path, train: list[Path], test: list[Path], classes: list[str]) -> None:
    folder = root / layout.folder
    folder.mkdir(parents=True)
    parts = {name: train[n :: len(layout.train)] for n, name in enumerate(layout.train)} | {layout.test: test}
    for name, paths in parts.items():
        labels = [classes.index(path.parent.name) for path in paths]
        content = {"data": np.stack([row_of(path) for path in paths]), layout.labels: labels}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / layout.meta).write_bytes(pickle.dumps({layout.names: classes}, protocol=2))


@pytest.mark.timeout(900 if IMAGES else 60)
@pytest.mark.parametrize("task", LAYOUTS)
def test_every_pixel_of_the_published_layout_is_read(task: str, tmp_path: Path) -> None:
    images = Path(IMAGES) / task if IMAGES else drawn(tmp_path / "png")
    if not images.is_dir():
        pytest.skip(f"there is no {images}")
    train, test = splits_of(images)
    classes = sorted({path.parent.name for path in train})
    layout = LAYOUTS[task]
    write_published(layout, tmp_path / "in", train, test, classes)
    # Under this protocol training images that are also test images stay, as a few of CIFAR-100 do.
    source, output = tmp_path / "in", str(tmp_path / "out")
    prepare(layout.kind(source=source, output=output, unverified=True, protocol="released"))
    batches = len(layout.train)
    for split, paths in (("train", [path for n in range(batches) for path in train[n::batches]]), ("test", test)):
        table = read_images(output, split)
        assert len(table) == len(paths) > 0
        assert table.class_names == tuple(classes)
        for row, path in enumerate(paths):
            assert classes[table.labels[row]] == path.parent.name
            assert np.array_equal(np.array(decode_image(table.encoded(row), 3)), np.asarray(Image.open(path))), path
