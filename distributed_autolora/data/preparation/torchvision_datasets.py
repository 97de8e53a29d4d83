"""CIFAR-10, CIFAR-100, DTD and Caltech-256 from their published files, read by torchvision; nothing is downloaded."""

import contextlib
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import CIFAR10, CIFAR100, DTD, Caltech256
from torchvision.datasets.utils import check_integrity

from distributed_autolora.data.parquet.locations import one_line
from distributed_autolora.data.preparation import flags as published
from distributed_autolora.data.preparation.fashion_mnist import png
from distributed_autolora.data.preparation.source import SPLITS, SourceRow, SourceTask, count_notes, file_row, held_out
from distributed_autolora.errors import UserError

RELEASED_OUTPUTS = 57
"""Outputs of the authors' code's classifier for DTD, which has 47 classes."""
_CIFAR: dict[str, Any] = {"cifar10": CIFAR10, "cifar100": CIFAR100}
_CIFAR_NEAR_COPIES = {
    "cifar10": "3.3 % of the test images have a near-copy among the training images (Barz and Denzler, 2020)",
    "cifar100": "10 % of the test images have a near-copy among the training images (Barz and Denzler, 2020)",
}

# Torchvision's readers raise these for damaged files, and pickle for unverified ones.
_UNREADABLE: tuple[type[Exception], ...] = (RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError)
_UNREADABLE += (AttributeError, ImportError, pickle.UnpicklingError)


def cifar(flags: published.Cifar10) -> SourceTask:
    """Reads CIFAR-10 or CIFAR-100 (Krizhevsky, 2009) from its Python version; pixels become PNG files.

    The files are pickles, which may run any code when they are read: others than the published ones are refused.
    The images of both protocols are the same.

    Raises:
        UserError: for missing, damaged or other files.
    """
    task, unverified = flags.recipe, flags.unverified
    kind = _CIFAR[task]
    root = flags.source.parent if flags.source.name == kind.base_folder else flags.source
    folder = root / kind.base_folder
    checksums = {**dict([*kind.train_list, *kind.test_list]), kind.meta["filename"]: kind.meta["md5"]}
    missing = [name for name in checksums if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} has no {', '.join(missing)}: unpack {kind.filename} into {root}.")
    if not unverified:
        _check_published(folder, checksums, kind.filename)
    with _readable(folder, f"unpack {kind.filename} into {root} again"):
        kind = _without_checksums(kind) if unverified else kind
        splits = {split: kind(str(root), train=split == "train") for split in SPLITS}
    rows = {
        split: [
            SourceRow(partial(png, pixels), int(label), f"{split}/{number:05d}", f"{folder}, {split} image {number}")
            for number, (pixels, label) in enumerate(zip(images.data, images.targets, strict=True))
        ]
        for split, images in splits.items()
    }
    return SourceTask(
        task=task,
        class_names=splits["train"].classes,
        rows=rows,
        licence="not stated by its authors, who ask for a citation of Krizhevsky (2009)",
        provenance=f"{task} (Krizhevsky, 2009, https://www.cs.toronto.edu/~kriz/cifar.html), "
        + ("in files that were not verified" if unverified else "official splits"),
        overlaps=("a labelled subset of 80 Million Tiny Images", _CIFAR_NEAR_COPIES[task]),
        notes=(*count_notes(rows, {"train": 50_000, "test": 10_000}), *(["files were not verified"] * unverified)),
        protocol=flags.protocol,
    )


def _check_published(folder: Path, checksums: dict[str, str], archive: str) -> None:
    others = [name for name, md5 in checksums.items() if not check_integrity(folder / name, md5)]
    if others:
        raise UserError(
            f"{folder}: {', '.join(others)} are not the published files (their MD5 differs), and opening them could "
            f"run any program: unpack {archive} again, or give --unverified if you trust these ones."
        )


def _without_checksums(kind: Any) -> Any:
    lists = {name: [(file, None) for file, _ in getattr(kind, name)] for name in ("train_list", "test_list")}
    return type(kind.__name__, (kind,), {**lists, "meta": {**kind.meta, "md5": None}})


def dtd(flags: published.Dtd) -> SourceTask:
    """Reads the Describable Textures Dataset (Cimpoi et al., 2014): partition 1, train and val together for training.

    The protocol "released" names the 57 outputs of the authors' code, ten of which no image belongs to.

    Raises:
        UserError: for missing files or lists.
    """
    data = _first(flags.source, ("dtd/dtd", "dtd", "."), "labels", "unpack dtd-r1.0.1.tar.gz into it")
    with _readable(data, "unpack dtd-r1.0.1.tar.gz again"), _linked("dtd/dtd", data) as root:
        # With this loader an item is the path of an image and its label; labels of parts of a list may differ.
        parts = {name: DTD(root, split=name, partition=1, loader=Path) for name in ("train", "val", "test")}
        paths = {name: [Path(*part[i][0].parts[-2:]) for i in range(len(part))] for name, part in parts.items()}
    names = sorted({path.parent.name for part in paths.values() for path in part})
    rows = {
        split: [
            file_row(data / "images" / path, names.index(path.parent.name), path.as_posix())
            for part in parts_of_split
            for path in paths[part]
        ]
        for split, parts_of_split in (("train", ("train", "val")), ("test", ("test",)))
    }
    outputs = RELEASED_OUTPUTS if flags.protocol == "released" else 0
    unused = [f"(unused {number})" for number in range(len(names), outputs)]
    return SourceTask(
        task="dtd",
        class_names=[*names, *unused],
        rows=rows,
        licence="for research purposes, as stated on its page",
        provenance="Describable Textures Dataset r1.0.1 (Cimpoi et al., 2014, "
        "https://www.robots.ox.ac.uk/~vgg/data/dtd), partition 1: train and val for training, test for testing",
        notes=(
            *count_notes(rows, {"train": 3760, "test": 1880}),
            *([f"as released: {len(unused)} outputs of the classifier belong to no class"] if unused else []),
        ),
        protocol=flags.protocol,
    )


def caltech256(flags: published.Caltech256) -> SourceTask:
    """Reads Caltech-256 (Griffin, Holub and Perona, 2007), which has no official split.

    "clean" holds out a stratified share of every class. "released" takes `train_per_class` consecutive images (authors'
    code: 150; Liu et al.: 60) from the first of each class on, beyond its end where it has fewer: small classes have no
    test image, and images of the next class are repeated.

    Raises:
        UserError: for missing files, or a class without a test image under "clean".
    """
    name = "256_ObjectCategories"
    data = _first(flags.source, (f"caltech256/{name}", name, "."), "001.*", "unpack 256_ObjectCategories.tar into it")
    with _readable(data, "unpack 256_ObjectCategories.tar again"), _linked(f"caltech256/{name}", data) as root:
        images = Caltech256(root)
    without = flags.protocol == "clean" and not flags.clutter and images.categories[-1].endswith(".clutter")
    kept = len(images.categories) - without
    files = [
        (Path(images.categories[label], f"{label + 1:03d}_{number:04d}.jpg"), label)
        for label, number in zip(images.y, images.index, strict=True)
        if label < kept
    ]
    train, test, how = _caltech_split([label for _, label in files], kept, flags)
    rows = {split: _caltech_rows(data, files, chosen) for split, chosen in (("train", train), ("test", test))}
    return SourceTask(
        task="caltech256",
        class_names=[category.partition(".")[2] for category in images.categories[:kept]],
        rows=rows,
        licence="CC BY 4.0, as stated by CaltechDATA",
        provenance=f"Caltech-256 (Griffin, Holub and Perona, 2007, data.caltech.edu/records/nyy15-4j048); {how}",
        overlaps=("collected from web search, as ImageNet was: the pre-training set may contain some of the images",),
        notes=("there is no official split: numbers are comparable only between runs on these very files",),
        protocol=flags.protocol,
    )


def _caltech_split(
    labels: list[int], num_classes: int, flags: published.Caltech256
) -> tuple[list[int], list[int], str]:
    if flags.protocol == "released":
        per_class = flags.train_per_class
        how = f"as released: {per_class} consecutive images from the start of each class, with repetitions"
        return *consecutive_split(torch.tensor(labels), per_class), how
    train, test, how = held_out(labels, flags.test_fraction, flags.seed)
    if len({labels[position] for position in test}) < num_classes:
        raise UserError(f"A test fraction of {flags.test_fraction} leaves a class without a test image: give more.")
    return train, test, how


def consecutive_split(labels: torch.Tensor, per_class: int) -> tuple[list[int], list[int]]:
    """Returns positions to train on, with repetitions, and the rest, as the authors' code chooses them.

    Of each class of the ascending labels, `per_class` positions from its first on; fewer at the end of the list.
    """
    starts = [int(position) for position in torch.searchsorted(labels, labels.unique())]
    train = [position for start in starts for position in range(start, min(start + per_class, len(labels)))]
    return train, sorted(set(range(len(labels))) - set(train))


def _caltech_rows(data: Path, files: Sequence[tuple[Path, int]], chosen: list[int]) -> list[SourceRow]:
    times: dict[int, int] = {}
    rows = []
    for position in chosen:
        path, label = files[position]
        times[position] = times.get(position, 0) + 1
        again = f"#{times[position]}" if times[position] > 1 else ""
        rows.append(file_row(data / path, label, path.as_posix() + again))
    return rows


def _first(source: Path, below: Sequence[str], holds: str, what_to_do: str) -> Path:
    for name in below:
        if any((source / name).glob(holds)):
            return (source / name).absolute()
    raise UserError(f"{source} has no {below[-2]} with {holds}: {what_to_do}.")


@contextlib.contextmanager
def _linked(name: str, data: Path) -> Iterator[str]:
    """Gives a temporary folder in which `name` leads to `data`, because torchvision asks for one layout."""
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, name)
        link.parent.mkdir(parents=True)
        link.symlink_to(data, target_is_directory=True)
        yield folder


@contextlib.contextmanager
def _readable(where: Path, what_to_do: str) -> Iterator[None]:
    try:
        yield
    except _UNREADABLE as error:
        raise UserError(f"{where} cannot be read ({one_line(error)}): {what_to_do}.") from error
