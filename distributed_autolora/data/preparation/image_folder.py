"""Folders of images, one folder a class, as rows for Parquet."""

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from distributed_autolora.data.class_names import check_class_names, in_order
from distributed_autolora.data.preparation.flags import Folder
from distributed_autolora.data.preparation.source import SPLITS, FileRows, SourceTask, held_out
from distributed_autolora.errors import UserError, counted, some

# fmt: off
IMAGE_EXTENSIONS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp",
    ".avif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga",
))
# fmt: on
"""Endings of image files."""

_SPLIT_WORDS = {*SPLITS, "training", "testing", "val", "valid", "validation", "dev", "eval"}
_MAX_SHOWN = 5
_HIDDEN, _OUTSIDE = _REASONS = "they are hidden", "they are in no class's folder"


def image_folder(flags: Folder) -> SourceTask:
    """Reads a folder with one folder of images a class, or with train/ and test/ that each have those.

    The row id is the path below the folder. Every file is a row or is counted by the reason why it is none: hidden, in
    no class's folder, or without an image's ending.

    Raises:
        UserError: for a missing folder, fewer than two classes, a class without images, train/ and test/ with
            different classes, and a folder that links lead to twice.
    """
    source = flags.source
    if not source.is_dir():
        raise UserError(f"{source} is not a folder: give a folder that has one folder of images a class.")
    folders, walk = _visible_folders(source), _Walk(source)
    walk.enter(source)
    other: list[str] = []
    if set(SPLITS) <= set(folders):
        other, folders = [name for name in folders if name not in SPLITS], _classes_of_both(source)
        walk.beside(source, {*SPLITS, *other})
        other = [f"{name} ({counted(walk.leave_out(source / name, name), 'file')})" for name in other]
        files = {split: walk.labelled_files(source / split, folders) for split in SPLITS}
        how = "its own train/ and test/"
    elif folders and {name.lower() for name in folders} <= _SPLIT_WORDS:
        raise UserError(
            f"{source} has {', '.join(folders)} but not both train and test: add or rename them, or give the folder "
            "whose folders are the classes."
        )
    else:
        every = walk.labelled_files(source, folders)
        train, test, how = held_out([label for _, label in every], flags.test_fraction, flags.seed)
        files = {"train": [every[position] for position in train], "test": [every[position] for position in test]}
    check_class_names(folders, str(source))
    return SourceTask(
        task=flags.task or source.name,
        class_names=folders,
        rows={split: FileRows(source, own) for split, own in files.items()},
        licence=flags.licence,
        provenance=f'folder "{source.name}", {how}',
        notes=_notes(walk.endings, other, folders, files["test"]) + walk.notes(),
        seen=walk.seen,
        not_used=walk.endings.total() + walk.others.total(),
    )


def _classes_of_both(source: Path) -> list[str]:
    in_train, in_test = _visible_folders(source / "train"), _visible_folders(source / "test")
    if in_train != in_test:
        name = sorted(set(in_train) ^ set(in_test))[0]
        there, missing = SPLITS if name in in_train else reversed(SPLITS)
        raise UserError(f'{source}: class "{name}" is in {there} but not in {missing}: both need the same classes.')
    return in_train


def _notes(
    skipped: Counter[str], other: list[str], class_names: Sequence[str], test: list[tuple[str, int]]
) -> tuple[str, ...]:
    tested = {label for _, label in test}
    untested = [name for label, name in enumerate(class_names) if label not in tested]
    endings = some([f"{count} {ending}" for ending, count in skipped.most_common()], _MAX_SHOWN)
    notes = [f"not used, because of their endings: {skipped.total()} files ({endings})"] if skipped else []
    notes += [f"not used: {', '.join(other)}"] if other else []
    return (*notes, f"no test image of: {some(untested, _MAX_SHOWN)}") if untested else tuple(notes)


def _visible_folders(folder: Path) -> list[str]:
    return in_order(path.name for path in _entries(folder) if path.is_dir())


def _entries(folder: Path, *, hidden: bool = False) -> Iterator[Path]:
    try:
        yield from (path for path in folder.iterdir() if hidden or _is_visible(path.name))
    except OSError as error:
        _refuse(error)


def _is_visible(name: str) -> bool:
    return not name.startswith((".", "__MACOSX"))


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename} cannot be read: {error.strerror}. Give yourself the right to, or move it away.")


def _ending(path: Path) -> str:
    return path.suffix.lower() or "without an ending"


@dataclass
class _Walk:
    """The files of a source: each is an image of a class, or counted as not used."""

    source: Path
    seen: int = 0
    """All files, counted where they are listed."""
    endings: Counter[str] = field(default_factory=Counter)
    """Files that are not used because of their endings."""
    others: Counter[str] = field(default_factory=Counter)
    """Files that are not used for another reason, by that reason."""
    _entered: dict[tuple[int, int], Path] = field(default_factory=dict)
    """Device and inode of every folder that was read: a link may lead to one again."""

    def enter(self, folder: Path) -> None:
        """Notes that a folder is read.

        Raises:
            UserError: when it was read before, under another path.
        """
        status = folder.stat()
        first = self._entered.setdefault((status.st_dev, status.st_ino), folder)
        if first != folder:
            raise UserError(
                f"{folder} is the same folder as {first}, by a link: its images would be there twice. Remove the link."
            )

    def beside(self, folder: Path, known: Collection[str]) -> None:
        """Counts what lies in a folder beside those of its folders that are read for themselves."""
        for entry in _entries(folder, hidden=True):
            if entry.is_dir() and entry.name not in known:
                self.leave_out(entry, _HIDDEN)
            elif not entry.is_dir():
                self._other_file(entry, is_visible=_is_visible(entry.name))

    def leave_out(self, folder: Path, why: str) -> int:
        """Counts the files of a folder that is not used; follows no links."""
        files = sum(len(names) for _, _, names in os.walk(folder, onerror=_refuse))
        self.seen += files
        self.others[why] += files
        return files

    def labelled_files(self, root: Path, class_names: list[str]) -> list[tuple[str, int]]:
        """Returns (path below the source, label) of every image, by class and path."""
        if len(class_names) < 2:
            raise UserError(f"{root} has {counted(len(class_names), 'folder')}: two or more are needed, one a class.")
        self.beside(root, class_names)
        files: list[tuple[str, int]] = []
        for label, name in enumerate(class_names):
            images = self._images(root / name)
            if not images:
                raise UserError(f"{root / name} holds no image: add some, or remove the folder. A folder is a class.")
            files += [(path, label) for path in images]
        return files

    def notes(self) -> tuple[str, ...]:
        """Returns what `others` counts, but for folders that have notes of their own."""
        return tuple(f"not used, because {why}: {self.others[why]} files" for why in _REASONS if self.others[why])

    def _images(self, folder: Path) -> list[str]:
        found = list[str]()
        for parent, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
            self.enter(Path(parent))
            for name in [name for name in folders if not _is_visible(name)]:
                self.leave_out(Path(parent, name), _HIDDEN)
                folders.remove(name)
            below = Path(parent).relative_to(self.source).as_posix()
            for name in names:
                if _is_visible(name) and Path(name).suffix.lower() in IMAGE_EXTENSIONS:
                    self.seen += 1
                    found.append(f"{below}/{name}")
                else:
                    self._other_file(Path(parent, name), is_visible=_is_visible(name))
        return sorted(found, key=lambda path: path.split("/"))

    def _other_file(self, path: Path, *, is_visible: bool) -> None:
        self.seen += 1
        if not is_visible:
            self.others[_HIDDEN] += 1
        elif path.suffix.lower() in IMAGE_EXTENSIONS:
            self.others[_OUTSIDE] += 1
        else:
            self.endings[_ending(path)] += 1
