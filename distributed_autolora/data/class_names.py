"""The names of a task's classes: their order, names that cannot be told apart, and labels by name."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from distributed_autolora.data.parquet.reader import ImageTable
from distributed_autolora.errors import UserError, is_utf8, some

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def in_order(names: Iterable[str]) -> list[str]:
    """Returns class names in the order of their labels: as numbers if all are whole ones, else by code points."""
    ordered = sorted(names)
    return sorted(ordered, key=int) if all(name.isdecimal() for name in ordered) else ordered


def has_control(text: str) -> bool:
    """Tells whether a text has a line break or another control character."""
    return bool(_CONTROL.search(text))


def look_alikes(names: Sequence[str]) -> list[tuple[str, str]]:
    """Returns pairs of names that differ in case, blanks, leading zeros, or how a letter is encoded, or not at all."""
    first: dict[str, str] = {}
    pairs = []
    for name in names:
        shown = "".join(letter for letter in name if unicodedata.category(letter) != "Cf")  # those have no width
        key = " ".join(unicodedata.normalize("NFKC", shown).casefold().split())
        key = str(int(key)) if key.isdecimal() else key
        if key in first:
            pairs.append((first[key], name))
        first.setdefault(key, name)
    return pairs


def check_class_names(names: Sequence[str], where: str) -> None:
    """Checks the names of a task that is to be written.

    Raises:
        UserError: for names that are not UTF-8 or have line breaks or control characters, and two that look alike.
    """
    foreign = [name for name in names if not is_utf8(name)]
    if foreign:
        raise UserError(f"{where}: the class name {_short(foreign[0])} is not UTF-8: rename it (convmv does so).")
    broken = [name for name in names if has_control(name)]
    if broken:
        raise UserError(
            f"{where}: the class name {_short(broken[0])} has a line break or control character. Rename it."
        )
    for one, other in look_alikes(names)[:1]:
        raise UserError(
            f"{where}: the class names {one!a} and {other!a} look alike. Give both one name, or more different ones."
        )


def too_few(names: Sequence[str], counts: Mapping[int, int], where: str) -> str:
    """Returns a line about classes with no training image or a single one; an empty text if there are none.

    Args:
        counts: images by label; a label may be missing.
    """
    few = [f"{_short(name)}: {counts.get(label, 0)}" for label, name in enumerate(names) if counts.get(label, 0) < 2]
    if not few:
        return ""
    return f"{where} has too few training images of {some(few)}: a class needs two at least. Add some, or remove it."


def label_map(table: ImageTable, class_names: Sequence[str], model: str) -> tuple[int, ...] | None:
    """Returns the model's label for each label of a table, by the classes' names; None where they are the same.

    Args:
        class_names: of the model's outputs, in their order. The table may lack some of them.
        model: its name, for messages.

    Raises:
        UserError: when the table has a class that the model has not, or a name is there twice.
    """
    own = list(table.class_names)
    if own == list(class_names):
        return None
    places = {name: label for label, name in enumerate(class_names)}
    unknown = [name for name in own if name not in places]
    if unknown or len(places) < len(class_names) or len(set(own)) < len(own):
        what = f"{some(unknown)} is unknown to the model" if unknown else "a name is there twice"
        raise UserError(
            f"{table.where} has the classes {some(own, 12)}, but {model} was trained on {some(class_names, 12)}: "
            f"{what}, so labels cannot be matched. Write the images again under the names of the model's classes."
        )
    return tuple(places[name] for name in own)


def relabelled(table: ImageTable, labels: Sequence[int], class_names: Sequence[str]) -> ImageTable:
    """Returns a table with the labels that `label_map` gave, under the model's class names."""
    return replace(table, labels=torch.tensor(labels)[table.labels], class_names=tuple(class_names))


def _short(name: str) -> str:
    text = name if len(name) <= 40 else f"{name[:37]}..."
    return text if is_utf8(text) and not has_control(text) else ascii(text)
