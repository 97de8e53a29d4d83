"""Strict reading of values from people: nothing unknown, nothing guessed."""

from __future__ import annotations

import dataclasses
import difflib
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from distributed_autolora.errors import UserError


def nearest(word: str, known: list[str]) -> str:
    """Returns ' Did you mean "x"?' for the known word nearest to `word`, or an empty string."""
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f' Did you mean "{matches[0]}"?' if matches else ""


def fraction(text: str) -> float:
    """Reads "0.1" or "8/255".

    Raises:
        ValueError: for anything else.
    """
    numerator, slash, denominator = text.partition("/")
    return float(numerator) / float(denominator) if slash else float(numerator)


def from_mapping(cls: Any, values: Any, where: str = "") -> Any:
    """Builds a dataclass from nested mappings; missing keys take their defaults.

    Args:
        cls: the dataclass.
        values: what a YAML file or `to_dict` gave.
        where: keys above this mapping, for messages.

    Raises:
        UserError: for an unknown key (names the nearest known one) or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise UserError(f'Config: "{where.rstrip(".") or "the file"}" must be a mapping (name: value), not {values!r}.')
    hints = get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise UserError(f'Config: unknown key "{where}{key}".{nearest(str(key), list(hints))} --help lists all.')
    return cls(**{key: _convert(hints[key], value, f"{where}{key}") for key, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Returns `value` as the type that the hint asks for, without guessing."""
    if dataclasses.is_dataclass(hint):
        return from_mapping(hint, value, f"{where}.")
    origin, options = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in options:
            known = ", ".join(map(str, options))
            raise UserError(f'Config: "{where}" is {value!r}; it must be one of: {known}.')
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else _convert(options[0], value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(options[0], item, where) for item in value)
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return fraction(str(value)) if isinstance(value, str) else float(value)
        except (ValueError, ZeroDivisionError):
            raise UserError(f'Config: "{where}" is {value!r}; it must be a number.') from None
    if hint in (int, bool, str) and type(value) is hint:
        return value
    expected = {int: "a whole number", bool: "true or false", str: "a text", float: "a number"}.get(hint, "a list")
    raise UserError(f'Config: "{where}" is {value!r}; it must be {expected}.')
