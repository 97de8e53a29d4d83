"""Folders of images, one folder a class, as rows for Parquet."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from distributed_autolora.data.preparation.source import SourceRow, file_row
from distributed_autolora.data.splits import stratified_holdout
from distributed_autolora.errors import UserError

# fmt: off
IMAGE_EXTENSIONS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp",
    ".avif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga",
))
# fmt: on
"""Files with these endings are taken for images."""

_SPLITS = ("train", "test")
_SPLIT_WORDS = {*_SPLITS, "training", "testing", "val", "valid", "validation", "dev", "eval"}
_MAX_SHOWN = 5


@dataclass(frozen=True)
class FolderImages:
    """The images of a folder, not read yet, and what was left aside."""

    root: Path
    class_names: tuple[str, ...]
    files: dict[str, list[tuple[Path, int]]]
    """For "train" and "test": paths with labels, ordered by class and path."""
    how_split: str
    """Where the test images come from, for the provenance."""
    notes: tuple[str, ...]
    """What was not used, for people; one line each."""

    def rows(self, split: str) -> list[SourceRow]:
        """Returns the rows of a split; the row id is the path below the folder."""
        return [file_row(path, label, path.relative_to(self.root).as_posix()) for path, label in self.files[split]]


def image_folder(source: Path, *, test_fraction: float, seed: int) -> FolderImages:
    """Finds the images of a folder with one folder a class, or with train/ and test/ that each have those.

    Hidden files are passed over; files whose ending is no image's are counted in the notes.

    Args:
        source: the folder.
        test_fraction: share of each class to hold out for testing where there is no test/, in (0, 1).
        seed: seed of that choice.

    Raises:
        UserError: for a missing folder, fewer than two classes, a class without images, train/ and test/ with
            different classes.
    """
    if not source.is_dir():
        raise UserError(f"{source} is not a folder: give a folder that has one folder of images a class.")
    folders = _visible_folders(source)
    if set(_SPLITS) <= set(folders):
        return _with_official_test(source, folders)
    if folders and {name.lower() for name in folders} <= _SPLIT_WORDS:
        raise UserError(
            f"{source} has {', '.join(folders)} but not both train and test: add or rename them, or give the folder "
            "whose folders are the classes."
        )
    if not 0 < test_fraction < 1:
        raise UserError(f"The test fraction is {test_fraction}: it must be between 0 and 1, for instance 0.2.")
    files, skipped = _labelled_files(source, folders)
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    chosen = set(stratified_holdout(labels, round(test_fraction * len(labels)), seed).tolist())
    splits: dict[str, list[tuple[Path, int]]] = {"train": [], "test": []}
    for position, file in enumerate(files):
        splits["test" if position in chosen else "train"].append(file)
    if not chosen:
        raise UserError(
            f"{source} has {len(files)} images, too few to hold out {test_fraction:.0%} for testing: add some."
        )
    return FolderImages(
        source,
        tuple(folders),
        splits,
        f"test share {test_fraction}, stratified, seed {seed}",
        _notes(skipped, [], folders, splits["test"]),
    )


def _with_official_test(source: Path, folders: list[str]) -> FolderImages:
    class_names = _visible_folders(source / "train")
    in_test = _visible_folders(source / "test")
    if class_names != in_test:
        name = sorted(set(class_names) ^ set(in_test))[0]
        there, missing = ("train", "test") if name in class_names else ("test", "train")
        raise UserError(f'{source}: class "{name}" is in {there} but not in {missing}: both need the same classes.')
    splits, skipped = {}, Counter[str]()
    for split in _SPLITS:
        splits[split], unused = _labelled_files(source / split, class_names)
        skipped += unused
    other = [name for name in folders if name not in _SPLITS]
    return FolderImages(
        source,
        tuple(class_names),
        splits,
        "its own train/ and test/",
        _notes(skipped, other, class_names, splits["test"]),
    )


def _notes(
    skipped: Counter[str], other: list[str], class_names: Sequence[str], test: list[tuple[Path, int]]
) -> tuple[str, ...]:
    present = {label for _, label in test}
    untested = [name for label, name in enumerate(class_names) if label not in present]
    endings = ", ".join(f"{count} {ending}" for ending, count in skipped.most_common(_MAX_SHOWN))
    endings += ", ..." if len(skipped) > _MAX_SHOWN else ""
    notes = [f"not used, because of their endings: {skipped.total()} files ({endings})"] if skipped else []
    notes += [f"not used: {', '.join(other)}"] if other else []
    return (*notes, f"no test image of: {', '.join(untested)}") if untested else tuple(notes)


def _visible_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in _entries(folder) if path.is_dir())


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from (path for path in folder.iterdir() if _is_visible(path.name))
    except OSError as error:
        _refuse(error)


def _is_visible(name: str) -> bool:
    return not name.startswith((".", "__MACOSX"))


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename} cannot be read: {error.strerror}. Give yourself the right to, or move it away.")


def _ending(path: Path) -> str:
    return path.suffix.lower() or "without an ending"


def _labelled_files(root: Path, class_names: list[str]) -> tuple[list[tuple[Path, int]], Counter[str]]:
    """Returns (path, label) of every image, by class and path, and the number of other files by their endings."""
    if len(class_names) < 2:
        raise UserError(f"{root} has {len(class_names)} folders: two or more are needed, one a class.")
    skipped = Counter(_ending(path) for path in _entries(root) if path.is_file())
    files: list[tuple[Path, int]] = []
    for label, name in enumerate(class_names):
        found = _visible_files(root / name)
        images = [path for path in found if path.suffix.lower() in IMAGE_EXTENSIONS]
        if not images:
            raise UserError(f"{root / name} holds no image: add some, or remove the folder. A folder is a class.")
        skipped.update(_ending(path) for path in found if path.suffix.lower() not in IMAGE_EXTENSIONS)
        files += [(path, label) for path in images]
    return files, skipped


def _visible_files(folder: Path) -> list[Path]:
    found = []
    for parent, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = [name for name in folders if _is_visible(name)]
        found += [Path(parent, name) for name in names if _is_visible(name)]
    return sorted(found)
