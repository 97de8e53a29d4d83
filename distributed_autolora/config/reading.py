"""Strict reading of a config from what people typed."""

from __future__ import annotations

from typing import Any

from distributed_autolora.records.reader import StrictReader, nearest

__all__ = ["fraction", "from_mapping", "nearest"]


def fraction(text: str) -> float:
    """Reads "0.1" or "8/255".

    Raises:
        ValueError: for anything else.
    """
    numerator, slash, denominator = text.partition("/")
    return float(numerator) / float(denominator) if slash else float(numerator)


def from_mapping(cls: Any, values: Any) -> Any:
    """Builds a config from nested mappings; missing keys take their defaults.

    Raises:
        UserError: for an unknown key (names the nearest known one) or a value of the wrong type.
    """
    return StrictReader("Config", advice=" --help lists all.", read_number=fraction).read(cls, values)
