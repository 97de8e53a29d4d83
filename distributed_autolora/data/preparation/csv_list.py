"""A CSV file of image paths and labels, as a task."""

import csv
import os
from pathlib import Path

from distributed_autolora.data.class_names import check_class_names, has_control, in_order
from distributed_autolora.data.parquet.locations import one_line
from distributed_autolora.data.preparation.flags import ImageList
from distributed_autolora.data.preparation.source import SPLITS, SourceRow, SourceTask, file_row, held_out
from distributed_autolora.errors import UserError

_COLUMNS = ("path", "label", "split")


def image_list(flags: ImageList) -> SourceTask:
    """Reads a CSV file with the columns path and label, and possibly split ("train" or "test").

    Paths are relative to the file's folder. Classes are in the order of `class_names.in_order`.

    Raises:
        UserError: for a file or lines that cannot be used; says which line.
    """
    source = flags.source
    lines = _lines(source)
    labels = {line["label"] for line in lines}
    names = in_order(labels)
    if len(names) < 2:
        raise UserError(f"{source} has {len(names)} labels: two or more are needed.")
    check_class_names(names, str(source))
    numbers = [names.index(line["label"]) for line in lines]
    if "split" in lines[0]:
        splits, how = [line["split"] for line in lines], "its own split"
        absent = [split for split in SPLITS if split not in splits]
        if absent:
            raise UserError(f'{source} has no {absent[0]} image: its column "split" needs train and test.')
    else:
        _, test, how = held_out(numbers, flags.test_fraction, flags.seed)
        is_test = set(test)
        splits = ["test" if position in is_test else "train" for position in range(len(lines))]
    rows: dict[str, list[SourceRow]] = {split: [] for split in SPLITS}
    for line, number, split in zip(lines, numbers, splits, strict=True):
        rows[split].append(file_row(source.parent / line["path"], number, line["path"]))
    provenance = f'list "{source.name}", {how}'
    return SourceTask(flags.task or source.stem, names, rows, flags.licence, provenance, seen=len(lines))


def _lines(source: Path) -> list[dict[str, str]]:
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            # Strict: otherwise a quote that is never closed takes all lines below it into one value.
            reader = csv.DictReader(file, restval="", strict=True)
            _check_header(source, list(reader.fieldnames or []))
            lines = _numbered(source, reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{source} cannot be read: {one_line(error)}. Give a CSV file of path and label.") from error
    if not lines:
        raise UserError(f"{source} names no image: give a line for each.")
    seen: set[str] = set()
    for number, line in lines:
        broken = [name for name in _COLUMNS if has_control(line.get(name) or "")]
        if broken:
            raise UserError(
                f"{source}, line {number}: {broken[0]} has a line break or a control character. Is a quote not closed?"
            )
        if None in line:
            raise UserError(
                f"{source}, line {number}: it has more values than the first line. Quote paths with commas."
            )
        # Spaces around a label or a split would make another class or split of it.
        line |= {name: line[name].strip() for name in ("label", "split") if name in line}
        if not line["path"] or not line["label"]:
            raise UserError(f"{source}, line {number}: path or label is empty. Complete or remove the line.")
        if line.get("split", "train") not in SPLITS:
            raise UserError(
                f'{source}, line {number}: split is "{line["split"]}", not train or test. Validation images are held '
                "out from train in training."
            )
        path = os.path.normpath(line["path"])
        if path in seen:
            raise UserError(f'{source}, line {number}: "{line["path"]}" is there twice. Remove one of the lines.')
        seen.add(path)
    return [line for _, line in lines]


def _check_header(source: Path, header: list[str]) -> None:
    if not {"path", "label"} <= set(header):
        raise UserError(f"{source}: its first line must name the columns path and label, possibly split.")
    for name in _COLUMNS:
        alike = [column for column in header if column.strip().casefold() == name]
        if alike not in ([], [name]):
            raise UserError(f"{source}: the columns {', '.join(map(ascii, alike))} look alike: keep only {name}.")


def _numbered(source: Path, reader: "csv.DictReader[str]") -> list[tuple[int, dict[str, str]]]:
    """Returns the lines of a file with the number at which each begins."""
    lines, first = [], 2
    try:
        for line in reader:
            lines.append((first, line))
            first = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{source}, line {first}: {one_line(error)}. Is a quote not closed?") from None
    return lines
