"""Strict reading of dataclasses from nested mappings (YAML, JSON): nothing unknown, nothing guessed."""

import dataclasses
import difflib
import types
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from distributed_autolora.console import switch
from distributed_autolora.errors import UserError

Record = TypeVar("Record")
FORMAT = 2
"""Version of the JSON files of runs; files of version 0.1 of this program do not state one."""
_EXPECTED = {int: "a whole number", bool: "true or false", str: "a text", float: "a number", dict: "a mapping"}


def nearest(word: str, known: list[str]) -> str:
    """Returns ' Did you mean "x"?' for the known word nearest to `word`, or an empty string."""
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f' Did you mean "{matches[0]}"?' if matches else ""


@dataclass(frozen=True)
class StrictReader:
    """Builds dataclasses from nested mappings; missing keys take their defaults.

    Attributes:
        source: where the values come from; messages begin with it.
        advice: ends the message about an unknown or missing key.
        read_number: reads a number that is given as text; None: only numbers are numbers.
    """

    source: str
    advice: str = ""
    read_number: Callable[[str], float] | None = None

    def read(self, cls: Any, values: Any, where: str = "") -> Any:
        """Returns a `cls` with these values.

        Args:
            where: keys above this mapping, for messages.

        Raises:
            UserError: for an unknown key (names the nearest known one), a missing key, or a value of the wrong type.
        """
        if not isinstance(values, dict):
            what = where.rstrip(".") or "the file"
            raise UserError(f'{self.source}: "{what}" must be a mapping (name: value), not {values!r}.')
        hints = get_type_hints(cls)
        for key in values:
            if key not in hints:
                near = nearest(str(key), list(hints))
                raise UserError(f'{self.source}: unknown key "{where}{key}".{near}{self.advice}')
        for field in dataclasses.fields(cls):
            if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
                raise UserError(f'{self.source}: key "{where}{field.name}" is missing.{self.advice}')
        return cls(**{key: self._convert(hints[key], value, f"{where}{key}") for key, value in values.items()})

    def _convert(self, hint: Any, value: Any, where: str) -> Any:
        """Returns `value` as the type that the hint asks for, without guessing."""
        origin, options = get_origin(hint), get_args(hint)
        if hint is Any:
            return value
        if dataclasses.is_dataclass(hint):
            return self.read(hint, value, f"{where}.")
        if origin in (Union, types.UnionType):
            return None if value is None else self._convert(options[0], value, where)
        if origin is tuple and isinstance(value, (list, tuple)):
            return tuple(self._convert(options[0], item, where) for item in value)
        if origin is dict and isinstance(value, dict):
            return {key: self._convert(options[1], item, f"{where}.{key}") for key, item in value.items()}
        return self._scalar(hint, value, where)

    def _scalar(self, hint: Any, value: Any, where: str) -> Any:
        if get_origin(hint) is Literal:
            if value in get_args(hint):
                return value
            known = ", ".join(map(str, get_args(hint)))
            raise UserError(f'{self.source}: "{where}" is {value!r}; it must be one of: {known}.')
        if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            return self._number(value, where)
        if hint in (int, bool, str) and type(value) is hint:
            return value
        expected = _EXPECTED.get(get_origin(hint) or hint, "a list")
        raise UserError(f'{self.source}: "{where}" is {value!r}; it must be {expected}.')

    def _number(self, value: int | float | str, where: str) -> float:
        kind = "a number"
        try:
            if isinstance(value, str):
                if self.read_number is not None:
                    return self.read_number(value)
            elif isinstance(value, float) or float(value) == value:
                return float(value)
            else:
                kind = "a number that a float64 holds exactly"
        except (ValueError, ZeroDivisionError, OverflowError):
            pass
        raise UserError(f'{self.source}: "{where}" is {value!r}; it must be {kind}.')


def _afresh() -> str:
    return f"start afresh with {switch('fresh')}"


def _without_format(values: Any, source: str, otherwise: str | None) -> dict[str, Any]:
    version = values.get("format") if isinstance(values, dict) else None
    if version != FORMAT:
        writer = "version 0.1" if version is None else "a newer version"
        raise UserError(
            f"{source} was written by {writer} of this program and cannot be read by this one: use that version, or "
            f"{otherwise or _afresh()}."
        )
    return {key: value for key, value in values.items() if key != "format"}


def to_json(record: Any) -> dict[str, Any]:
    """Returns JSON values of a record, with the format version, for `from_json`."""
    return {"format": FORMAT, **dataclasses.asdict(record)}


def from_json(cls: type[Record], values: Any, source: str, otherwise: str | None = None) -> Record:
    """Returns the record that `to_json` made these values of; `source` is their file, for messages.

    Raises:
        UserError: for values of version 0.1, or damaged ones; its advice is `otherwise`.
    """
    record: Record = StrictReader(source).read(cls, _without_format(values, source, otherwise))
    return record


def list_to_json(key: str, records: Sequence[Any]) -> dict[str, Any]:
    """Returns JSON values of records under a key, with the format version, for `list_from_json`."""
    return {"format": FORMAT, key: [dataclasses.asdict(record) for record in records]}


def list_from_json(cls: type[Record], key: str, values: Any, source: str, otherwise: str | None = None) -> list[Record]:
    """Returns the records that `list_to_json` made these values of; raises as `from_json`."""
    records = _without_format(values, source, otherwise).get(key)
    if not isinstance(records, list):
        raise UserError(f'{source}: "{key}" must be a list. Restore the file, or {otherwise or _afresh()}.')
    reader = StrictReader(source)
    return [reader.read(cls, record, f"{key}[{place}].") for place, record in enumerate(records)]
