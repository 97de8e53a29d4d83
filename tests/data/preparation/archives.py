"""Small collections in the original formats of the published ones."""

import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io

from tests.data.pictures import encode, picture

BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
BREEDS = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel")
CATEGORIES = ("001.ak47", "002.american-flag", "003.backpack", "004.clutter")
TEXTURES = ("banded", "dotted", "zigzagged")


def jpeg(folder: Path, name: str, number: int, size: tuple[int, int] = (40, 32)) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(encode(picture(number, size), "JPEG"))


def cifar(folder: Path, *, classes: int = 10, per_batch: int = 20, used: int | None = None) -> None:
    """Writes the Python version of CIFAR-10 or, with 100 classes, CIFAR-100; or with `used` classes."""
    ten = classes == 10
    base = folder / ("cifar-10-batches-py" if ten else "cifar-100-python")
    base.mkdir(parents=True)
    batches = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"] if ten else ["train", "test"]
    for number, name in enumerate(batches):
        pixels = np.random.default_rng(number).integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        labels = [n % (used or classes) for n in range(per_batch)]
        (base / name).write_bytes(pickle.dumps({"data": pixels, "labels" if ten else "fine_labels": labels}))
    key, file = ("label_names", "batches.meta") if ten else ("fine_label_names", "meta")
    (base / file).write_bytes(pickle.dumps({key: [f"class {n}" for n in range(used or classes)]}))


def dtd(folder: Path, per_part: int = 2) -> None:
    (folder / "dtd" / "labels").mkdir(parents=True)
    for position, part in enumerate(("train", "val", "test")):
        names = []
        for label, texture in enumerate(TEXTURES):
            for number in range(per_part):
                name = f"{texture}/{texture}_{position * per_part + number:04d}.jpg"
                jpeg(folder / "dtd" / "images", name, 100 * label + 10 * position + number)
                names.append(name)
        for partition in range(1, 11):
            (folder / "dtd" / "labels" / f"{part}{partition}.txt").write_text("\n".join(names) + "\n")


def dogs(folder: Path, per_class: Sequence[int] = (3, 2), *, packed: bool = False) -> None:
    """Writes Stanford Dogs; `packed` as images.tar and lists.tar. `per_class` are its train and test images."""
    folder.mkdir(parents=True, exist_ok=True)
    for position, split in enumerate(("train", "test")):
        files = [f"{b}/{b[:9]}_{position}{n}.jpg" for b in BREEDS for n in range(per_class[position])]
        labels = [label for label in (1, 2) for _ in range(per_class[position])]
        for number, file in enumerate(files):
            jpeg(folder / "Images", file, 50 * position + number)
        column = np.empty((len(files), 1), dtype=object)
        column[:, 0] = files
        content = {"file_list": column, "annotation_list": column, "labels": np.array(labels, np.uint8)[:, None]}
        scipy.io.savemat(folder / f"{split}_list.mat", content)
    if packed:
        for archive, names in (("images.tar", ["Images"]), ("lists.tar", ["train_list.mat", "test_list.mat"])):
            with tarfile.open(folder / archive, "w") as tar:
                for name in names:
                    tar.add(folder / name, name)
        (folder / "Images").rename(folder / "unused")
        for split in ("train", "test"):
            (folder / f"{split}_list.mat").unlink()


def cub(folder: Path, per_class: int = 5) -> None:
    """Writes CUB_200_2011; every third image of a class is a test image."""
    base = folder / "CUB_200_2011"
    images: list[str] = []
    labels, splits = [], []
    for label, bird in enumerate(BIRDS, start=1):
        for number in range(per_class):
            name = f"{bird}/{bird[4:]}_{number:04d}_{label}.jpg"
            jpeg(base / "images", name, 1000 * label + number)
            images.append(f"{len(images) + 1} {name}")
            labels.append(f"{len(images)} {label}")
            splits.append(f"{len(images)} {int(number % 3 != 2)}")
    classes = [f"{label} {bird}" for label, bird in enumerate(BIRDS, start=1)]
    files = {"images": images, "image_class_labels": labels, "train_test_split": splits, "classes": classes}
    for name, lines in files.items():
        (base / f"{name}.txt").write_text("\n".join(lines) + "\n")


def caltech256(folder: Path, sizes: Sequence[int] = (6, 9, 7, 12)) -> None:
    for label, (category, size) in enumerate(zip(CATEGORIES, sizes, strict=True), start=1):
        for number in range(1, size + 1):
            jpeg(folder / "256_ObjectCategories" / category, f"{label:03d}_{number:04d}.jpg", 30 * label + number)
    (folder / "256_ObjectCategories" / CATEGORIES[2] / "RENAME2").write_text("stray")
