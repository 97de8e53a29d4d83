"""How reports write names, numbers, times and Markdown tables."""

import re
from collections.abc import Sequence
from typing import Any

from distributed_autolora.records import AccuracyCount, EpochRecord
from distributed_autolora.reporting.statistics import wilson_interval

NONE = "-"
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def attack_label(name: str) -> str:
    """Returns an attack's printed name: "pgd10" becomes "PGD-10", "pgd20-margin" becomes "PGD-20 margin"."""
    if found := re.fullmatch(r"(pgd\d+)-(\w+)", name):
        return f"{attack_label(found[1])} {found[2]}"
    letters, digits = re.fullmatch(r"(.*?)(\d*)", name).groups()  # type: ignore[union-attr]
    return f"{letters.upper()}-{digits}" if digits else letters.upper()


def event(record: EpochRecord, *, short: bool = False) -> str:
    """Returns what the schedule did after an epoch, such as "halved, restored epoch 9"; "" for nothing."""
    events = []
    if record.halved:
        events.append("halved")
    elif record.next_lr < record.lr:
        events.append(f"lr x {record.next_lr / record.lr:.2g}")
    if record.restored:
        events.append(f"restored {'' if short else 'epoch '}{record.restored_epoch}")
    if record.stopped:
        events.append("stopped")
    return ", ".join(events)


def compact(number: float) -> str:
    """Returns a learning rate in at most 7 characters: 0.00125, 6.25e-4."""
    if number == 0 or number >= 0.001:
        return f"{number:.3g}"
    mantissa, exponent = f"{number:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def number(setting: Any) -> str:
    """Returns the value of a setting, short."""
    return compact(setting) if isinstance(setting, float) else str(setting)


def pixel_fraction(epsilon: float) -> str:
    """Returns a perturbation size as "8/255" where it is such a fraction below 1, else "0.1"."""
    levels = epsilon * 255
    is_fraction = abs(levels - round(levels)) < 1e-6 and levels < 254.5
    return f"{round(levels)}/255" if is_fraction else f"{epsilon:.4g}"


def threat_text(norm: str, epsilon: float) -> str:
    """Returns "at most 8/255 a pixel (L-infinity)" or "at most 0.5 an image (L2)"."""
    return f"at most {pixel_fraction(epsilon)} {'a pixel (L-infinity)' if norm == 'linf' else 'an image (L2)'}"


def duration(seconds: float) -> str:
    """Returns seconds as "0:42", "12:03" or "1:02:03"."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def left_text(seconds: float) -> str:
    """Returns "about 31 min left", or hours where that reads better."""
    if seconds < 90:
        return "about a minute left" if seconds > 0 else "done"
    return f"about {seconds / 60:.0f} min left" if seconds < 2 * 3600 else f"about {seconds / 3600:.1f} h left"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table whose columns line up; bars and line breaks inside a cell are made harmless."""
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])


def per_cent(fraction: float) -> str:
    """Returns 0.8342 as "83.4"."""
    return f"{100 * fraction:.1f}"


def with_interval(count: AccuracyCount, between: str = " ") -> str:
    """Returns "83.4 [81.0, 85.6]": an accuracy in per cent with its 95 % Wilson interval."""
    low, high = wilson_interval(count.correct, count.total)
    return f"{per_cent(count.accuracy)}{between}[{per_cent(low)}, {per_cent(high)}]"


def points(difference: float) -> str:
    """Returns a difference of two fractions in percentage points, with its sign: 0.012 as "+1.2"."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def p_value(p: float | None) -> str:
    """Returns a p-value with two digits, "undefined" for None."""
    return "undefined" if p is None else f"{p:.2g}"


def counted(count: int, noun: str) -> str:
    """Returns "one seed", "three seeds"; figures from eleven on."""
    word = _NUMBERS[count] if count < len(_NUMBERS) else str(count)
    return f"{word} {noun}{'' if count == 1 else 's'}"


def listed(items: Sequence[str]) -> str:
    """Returns "a", "a and b", "a, b and c"; "a, b; c; and d" where an item has a comma itself."""
    if len(items) == 1:
        return items[0]
    if any("," in item for item in items):
        return f"{'; '.join(items[:-1])}; and {items[-1]}"
    return f"{', '.join(items[:-1])} and {items[-1]}"
