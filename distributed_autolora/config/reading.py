"""Strict reading of configs: unknown keys, wrong types and values out of range are errors."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from distributed_autolora.errors import UserError, refuse_secret
from distributed_autolora.records.reader import StrictReader, nearest

__all__ = ["check_ranges", "fraction", "from_mapping", "nearest"]


def fraction(text: str) -> float:
    """Reads "0.1" or "8/255".

    Raises:
        ValueError: for anything else.
    """
    numerator, slash, denominator = text.partition("/")
    try:
        return float(numerator) / float(denominator) if slash else float(numerator)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text} is not a number such as 0.1 or 8/255") from None


def from_mapping(cls: Any, values: Any) -> Any:
    """Builds a config from nested mappings; missing keys take their defaults.

    Raises:
        UserError: for an unknown key (names the nearest known one) or a value of the wrong type.
    """
    return StrictReader("Config", advice=" --help lists all.", read_number=fraction).read(cls, values)


def check_ranges(config: Any, where: str = "") -> None:
    """Checks the numbers of a dataclass and its sections against the ranges of their fields, and its texts for secrets.

    Raises:
        UserError: naming the first value that is refused.
    """
    for item in dataclasses.fields(config):
        name, value = f"{where}{item.name}", getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{name}.")
        elif isinstance(value, str):
            refuse_secret(name, value)
        for number in value if isinstance(value, tuple) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{name} is {number}: give a finite number.")
        low, high = item.metadata.get("range", (-math.inf, math.inf))
        if isinstance(value, int | float) and not low <= value <= high:
            bound = f"at least {low}" if math.isinf(high) else f"from {low} to {high}"
            raise UserError(f"{name} is {value}: it must be {bound}.")
