"""Texts that people chose, such as class names, in figures."""

from functools import cache

from matplotlib.font_manager import findfont, get_font


def class_label(name: str, label: int) -> str:
    """Returns a class name as figures show it; "class 3" where the font lacks a letter of it."""
    return drawable(name) if all(ord(letter) in _letters() for letter in name) else f"class {label}"


def drawable(text: str) -> str:
    """Returns a text with a box in place of each letter that the font lacks, and without formulas between "$" signs."""
    shown = "".join(letter if ord(letter) in _letters() else "\u25a1" for letter in text)
    return shown.replace("$", r"\$")


@cache
def _letters() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())
