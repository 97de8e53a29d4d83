"""Stanford Dogs and CUB-200-2011 in the layout of their archives."""

import io
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from distributed_autolora.data.parquet.locations import one_line
from distributed_autolora.data.preparation.flags import Cub, Dogs
from distributed_autolora.data.preparation.source import SourceRow, SourceTask, count_notes, file_row
from distributed_autolora.errors import UserError

_AGAIN = "Unpack the archive again."


def dogs(flags: Dogs) -> SourceTask:
    """Reads Stanford Dogs (Khosla et al., 2011) with its official split, which both protocols share.

    Raises:
        UserError: for missing or damaged files, and lists that contradict each other.
    """
    source = flags.source
    row_of = _dog_rows(source)
    lists = {split: _mat_list(source, f"{split}_list.mat") for split in ("train", "test")}
    folders: dict[int, str] = {}
    for file, label in [entry for entries in lists.values() for entry in entries]:
        folder = file.partition("/")[0]
        if folders.setdefault(label, folder) != folder:
            raise UserError(f"The lists in {source} give {folders[label]} and {folder} the label {label + 1}. {_AGAIN}")
    if sorted(folders) != list(range(len(folders))):
        raise UserError(f"The lists in {source} skip labels of 1 .. {max(folders, default=0) + 1}: unpack them again.")
    rows = {split: [row_of(file, label) for file, label in entries] for split, entries in lists.items()}
    return SourceTask(
        task="dogs",
        class_names=[folders[label].partition("-")[2] or folders[label] for label in range(len(folders))],
        rows=rows,
        licence="images from ImageNet, whose terms hold: non-commercial research and education",
        provenance="Stanford Dogs (Khosla et al., 2011, vision.stanford.edu/aditya86/ImageNetDogs), official split",
        overlaps=("every image is from ImageNet: a pre-training set of ImageNet may contain the test images",),
        notes=count_notes(rows, {"train": 12_000, "test": 8_580}),
        protocol=flags.protocol,
    )


def _dog_rows(source: Path) -> Callable[[str, int], SourceRow]:
    for name in ("Images", "images"):
        if (source / name).is_dir():
            return lambda file, label: file_row(source / name / file, label, file)
    archive = source / "images.tar"
    if not archive.is_file():
        raise UserError(f"{source} has no Images/ and no images.tar: give the folder of Stanford Dogs.")
    members = _members(archive)
    return lambda file, label: SourceRow(
        partial(_from_archive, archive, members, f"Images/{file}"), label, file, f"{archive}, {file}"
    )


def _from_archive(archive: Path, members: dict[str, tuple[int, int]], name: str) -> bytes:
    if name not in members:
        raise FileNotFoundError(f"there is no {name}")
    start, size = members[name]
    with archive.open("rb") as file:
        file.seek(start)
        return file.read(size)


def _members(archive: Path) -> dict[str, tuple[int, int]]:
    """Returns start and size of every file in an uncompressed archive."""
    try:
        with tarfile.open(archive, "r:") as opened:
            return {member.name.removeprefix("./"): (member.offset_data, member.size) for member in opened}
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{archive} cannot be read: {one_line(error)}. Fetch it again.") from error


def _mat_list(source: Path, name: str) -> list[tuple[str, int]]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    archive = source / "lists.tar"
    try:
        if (source / name).is_file():
            content = (source / name).read_bytes()
        elif archive.is_file():
            content = _from_archive(archive, _members(archive), name)
        else:
            raise UserError(f"{source} has no {name} and no lists.tar: give the folder of Stanford Dogs.")
        values = loadmat(io.BytesIO(content), squeeze_me=True)
        files, labels = np.atleast_1d(values["file_list"]).tolist(), np.atleast_1d(values["labels"]).tolist()
        return [(str(file), int(label) - 1) for file, label in zip(files, labels, strict=True)]
    except (OSError, ValueError, LookupError, TypeError, NotImplementedError, MatReadError) as error:
        raise UserError(f"{source}/{name} cannot be read: {one_line(error)}. Fetch the lists again.") from error


def cub(flags: Cub) -> SourceTask:
    """Reads Caltech-UCSD Birds 200-2011 (Wah et al., 2011) with its official split, which both protocols share.

    Raises:
        UserError: for missing or damaged lists.
    """
    inner = flags.source / "CUB_200_2011"
    folder = inner if inner.is_dir() else flags.source
    files, labels, is_train, names = (
        _numbered(folder / name)
        for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
    )
    if not files.keys() == labels.keys() == is_train.keys():
        raise UserError(f"{folder}: its lists do not name the same images. {_AGAIN}")
    class_ids = {number: label for label, number in enumerate(sorted(names, key=int))}
    rows: dict[str, list[SourceRow]] = {"train": [], "test": []}
    for number, file in files.items():
        if labels[number] not in class_ids:
            raise UserError(
                f"{folder}/image_class_labels.txt: class {labels[number]} of image {number} has no name. {_AGAIN}"
            )
        if is_train[number] not in ("0", "1"):
            raise UserError(
                f"{folder}/train_test_split.txt: image {number} has {is_train[number]}, not 0 or 1. {_AGAIN}"
            )
        split = "train" if is_train[number] == "1" else "test"
        rows[split].append(file_row(folder / "images" / file, class_ids[labels[number]], file))
    return SourceTask(
        task="cub",
        class_names=[names[number].partition(".")[2] or names[number] for number in class_ids],
        rows=rows,
        licence="for non-commercial research and education, as stated on its page",
        provenance="Caltech-UCSD Birds 200-2011 (Wah et al., 2011, "
        "https://www.vision.caltech.edu/datasets/cub_200_2011), official split",
        overlaps=("some images are also in ImageNet, as its page says: a pre-training set may contain test images",),
        notes=count_notes(rows, {"train": 5_994, "test": 5_794}),
        protocol=flags.protocol,
    )


def _numbered(path: Path) -> dict[str, str]:
    """Returns {number: text} of a file of lines "NUMBER TEXT"."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}. Give the folder CUB_200_2011.") from error
    entries = {}
    for position, line in enumerate(lines, start=1):
        number, _, text = line.strip().partition(" ")
        if line.strip() and not (number.isdigit() and text):
            raise UserError(f'{path}, line {position}: "{line.strip()}" is no number and text. {_AGAIN}')
        if line.strip():
            entries[number] = text
    return entries
