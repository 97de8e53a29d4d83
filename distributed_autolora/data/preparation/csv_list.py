"""A CSV file of image paths and labels, as a task."""

import csv
from pathlib import Path

from distributed_autolora.data.parquet.locations import one_line
from distributed_autolora.data.preparation.flags import ImageList
from distributed_autolora.data.preparation.source import SPLITS, SourceRow, SourceTask, file_row, held_out
from distributed_autolora.errors import UserError


def image_list(flags: ImageList) -> SourceTask:
    """Reads a CSV file with the columns path and label, and possibly split ("train" or "test").

    Paths are relative to the file's folder. Classes are the labels in ascending order, as numbers if all are.

    Raises:
        UserError: for a file or lines that cannot be used; says which line.
    """
    source = flags.source
    lines = _lines(source)
    labels = {line["label"] for line in lines}
    names = sorted(labels)
    if all(label.isdecimal() for label in labels):
        names.sort(key=int)
    if len(names) < 2:
        raise UserError(f"{source} has {len(names)} labels: two or more are needed.")
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
    return SourceTask(flags.task or source.stem, names, rows, flags.licence, f'list "{source.name}", {how}')


def _lines(source: Path) -> list[dict[str, str]]:
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            header = reader.fieldnames or []
            if not {"path", "label"} <= set(header):
                raise UserError(f"{source}: its first line must name the columns path and label, possibly split.")
            lines = [(reader.line_num, line) for line in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{source} cannot be read: {one_line(error)}. Give a CSV file of path and label.") from error
    if not lines:
        raise UserError(f"{source} names no image: give a line for each.")
    seen: set[str] = set()
    for number, line in lines:
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
        if line["path"] in seen:
            raise UserError(f'{source}, line {number}: "{line["path"]}" is there twice. Remove one of the lines.')
        seen.add(line["path"])
    return [line for _, line in lines]
