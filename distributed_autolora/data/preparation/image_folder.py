"""Folders of images, one folder a class, as rows for Parquet."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from distributed_autolora.data.preparation.flags import Folder
from distributed_autolora.data.preparation.source import SPLITS, SourceTask, file_row, held_out
from distributed_autolora.errors import UserError

# fmt: off
IMAGE_EXTENSIONS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp",
    ".avif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga",
))
# fmt: on
"""Endings of image files."""

_SPLIT_WORDS = {*SPLITS, "training", "testing", "val", "valid", "validation", "dev", "eval"}
_MAX_SHOWN = 5


def image_folder(flags: Folder) -> SourceTask:
    """Reads a folder with one folder of images a class, or with train/ and test/ that each have those.

    The row id is the path below the folder. Hidden files are ignored; files without an image's ending are counted in
    the notes.

    Raises:
        UserError: for a missing folder, fewer than two classes, a class without images, train/ and test/ with
            different classes.
    """
    source = flags.source
    if not source.is_dir():
        raise UserError(f"{source} is not a folder: give a folder that has one folder of images a class.")
    folders = _visible_folders(source)
    other: list[str] = []
    if set(SPLITS) <= set(folders):
        other, folders = [name for name in folders if name not in SPLITS], _classes_of_both(source)
        found = {split: _labelled_files(source / split, folders) for split in SPLITS}
        files, skipped = {split: own for split, (own, _) in found.items()}, found["train"][1] + found["test"][1]
        how = "its own train/ and test/"
    elif folders and {name.lower() for name in folders} <= _SPLIT_WORDS:
        raise UserError(
            f"{source} has {', '.join(folders)} but not both train and test: add or rename them, or give the folder "
            "whose folders are the classes."
        )
    else:
        every, skipped = _labelled_files(source, folders)
        train, test, how = held_out([label for _, label in every], flags.test_fraction, flags.seed)
        files = {"train": [every[position] for position in train], "test": [every[position] for position in test]}
    return SourceTask(
        task=flags.task or source.name,
        class_names=folders,
        rows={
            split: [file_row(path, label, path.relative_to(source).as_posix()) for path, label in own]
            for split, own in files.items()
        },
        licence=flags.licence,
        provenance=f'folder "{source.name}", {how}',
        notes=_notes(skipped, other, folders, files["test"]),
    )


def _classes_of_both(source: Path) -> list[str]:
    in_train, in_test = _visible_folders(source / "train"), _visible_folders(source / "test")
    if in_train != in_test:
        name = sorted(set(in_train) ^ set(in_test))[0]
        there, missing = SPLITS if name in in_train else reversed(SPLITS)
        raise UserError(f'{source}: class "{name}" is in {there} but not in {missing}: both need the same classes.')
    return in_train


def _notes(
    skipped: Counter[str], other: list[str], class_names: Sequence[str], test: list[tuple[Path, int]]
) -> tuple[str, ...]:
    untested = [name for label, name in enumerate(class_names) if label not in {number for _, number in test}]
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


def _labelled_files(root: Path, class_names: list[str]) -> tuple[list[tuple[Path, int]], Counter[str]]:
    """Returns (path, label) of every image, by class and path, and the number of other files by their endings."""
    if len(class_names) < 2:
        raise UserError(f"{root} has {len(class_names)} folders: two or more are needed, one a class.")
    skipped = [path for path in _entries(root) if path.is_file()]
    files: list[tuple[Path, int]] = []
    for label, name in enumerate(class_names):
        found = _visible_files(root / name)
        images = [path for path in found if path.suffix.lower() in IMAGE_EXTENSIONS]
        if not images:
            raise UserError(f"{root / name} holds no image: add some, or remove the folder. A folder is a class.")
        skipped += [path for path in found if path.suffix.lower() not in IMAGE_EXTENSIONS]
        files += [(path, label) for path in images]
    return files, Counter(path.suffix.lower() or "without an ending" for path in skipped)


def _visible_files(folder: Path) -> list[Path]:
    found = []
    for parent, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = [name for name in folders if _is_visible(name)]
        found += [Path(parent, name) for name in names if _is_visible(name)]
    return sorted(found)
