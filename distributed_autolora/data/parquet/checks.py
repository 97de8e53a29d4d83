"""Checks of Parquet files of labelled images."""

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from distributed_autolora.data.parquet.locations import HOW_TO_WRITE
from distributed_autolora.errors import UserError

COLUMNS = {
    "image": ("encoded image bytes", lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind)),
    "label": ("whole numbers", pa.types.is_integer),
    "row_id": ("texts", lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind)),
}
"""Content of each column, for messages, and the test of its Arrow type."""


def check_columns(schema: Any, path: str) -> None:
    """Checks that an Arrow schema has the three columns in usable types.

    Raises:
        UserError: naming the first column that is missing or of another type.
    """
    for name, (meaning, is_kind) in COLUMNS.items():
        if name not in schema.names:
            there = ", ".join(schema.names) or "none"
            raise UserError(f'{path} has no column "{name}" ({meaning}); its columns: {there}. {HOW_TO_WRITE}.')
        if not is_kind(kind := schema.field(name).type):
            raise UserError(f'{path}: column "{name}" holds {kind}, not {meaning}. {HOW_TO_WRITE}.')


def check_metadata(raw: dict[bytes, bytes], path: str) -> dict[str, Any]:
    """Returns the JSON values of a file's metadata.

    Raises:
        UserError: unless they name two or more classes.
    """
    texts: dict[str, Any] = {}
    for key, value in raw.items():
        # Other programs keep other things there, not all of it JSON or even text.
        with contextlib.suppress(ValueError):
            texts[key.decode()] = json.loads(value)
    names = texts.get("class_names")
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise UserError(
            f'{path} does not name its classes: its schema metadata needs "class_names", a JSON list of two or more '
            f"texts. {HOW_TO_WRITE}."
        )
    return texts


def check_rows(table: Any, num_classes: int, path: str, first: int) -> None:
    """Checks that every row of a part of a file, from row `first` on, has an image, an id and a label of a class.

    Raises:
        UserError: naming the first row that has not.
    """
    for row, (label, row_id) in enumerate(zip(table["label"].to_pylist(), table["row_id"].to_pylist(), strict=True)):
        if label is None or not 0 <= label < num_classes:
            raise UserError(
                f'{path}, row {first + row} (row_id "{row_id}"): label {"null" if label is None else label} is not '
                f"one of 0 .. {num_classes - 1}; the file names {num_classes} classes. Correct label or names."
            )
    for name in ("image", "row_id"):
        if table[name].null_count:
            row = table[name].is_valid().to_pylist().index(False)
            raise UserError(f'{path}, row {first + row}: "{name}" is empty. Complete or remove the row.')


def check_same_names(one: Sequence[str], other: Sequence[str], one_where: str, other_where: str) -> None:
    """Checks that two lists of class names are equal.

    Raises:
        UserError: naming the first class that differs.
    """
    if list(one) == list(other):
        return
    pairs = enumerate(zip(one, other, strict=False))
    differences = (f'label {n} is "{a}" in one and "{b}" in the other' for n, (a, b) in pairs if a != b)
    difference = next(differences, f"{len(one)} classes and {len(other)}")
    raise UserError(
        f"{one_where} and {other_where} have different class names: {difference}. Write all files of a task in one go."
    )
