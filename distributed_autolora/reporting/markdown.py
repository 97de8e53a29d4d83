"""Text for readable Markdown: tables that line up in the raw file too, and numbers as people read them."""

from __future__ import annotations

from collections.abc import Sequence

NONE = "-"
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table whose columns line up; bars and line breaks inside a cell are made harmless."""
    cells = [[_harmless(cell) for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])


def per_cent(fraction: float) -> str:
    """Returns 0.8342 as "83.4"."""
    return f"{100 * fraction:.1f}"


def points(difference: float) -> str:
    """Returns a difference of two fractions in percentage points, with its sign: 0.012 as "+1.2"."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def p_value(p: float | None) -> str:
    """Returns a p-value with two digits, "undefined" for None."""
    return "undefined" if p is None else f"{p:.2g}"


def number_word(count: int) -> str:
    """Returns 3 as "three"; figures from eleven on."""
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)


def counted(count: int, noun: str) -> str:
    """Returns "one seed", "three seeds"."""
    return f"{number_word(count)} {noun}{'' if count == 1 else 's'}"


def listed(items: Sequence[str]) -> str:
    """Returns "a", "a and b", "a, b and c"; "a, b; c; and d" where an item has a comma itself."""
    if len(items) == 1:
        return items[0]
    if any("," in item for item in items):
        return f"{'; '.join(items[:-1])}; and {items[-1]}"
    return f"{', '.join(items[:-1])} and {items[-1]}"


def _harmless(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")
