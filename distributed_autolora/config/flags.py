"""Short names of flags, the same in every program, and the flag that was probably meant."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_type_hints

from distributed_autolora.errors import UserError
from distributed_autolora.records.reader import nearest

SHORT = {
    "--lr": ("--optimization.lr",),
    "--epochs": ("--optimization.epochs",),
    "--batch-size": ("--optimization.global-batch-size",),
    "--data": ("--data.path",),
    "--weights": ("--model.weights", "--model"),
    "--backbone": ("--model.backbone",),
    "--method": ("--method.name",),
    "--epsilon": ("--threat-model.epsilon",),
    "--workers": ("--scaling.num-workers", "--num-workers"),
    "--cpus-per-worker": ("--scaling.cpus-per-worker",),
    "--wait-for-resources-s": ("--scaling.wait-for-resources-s",),
    "--name": ("--run.name",),
    "--output": ("--run.output",),
    "--mlflow-uri": ("--run.mlflow-uri",),
    "--system-metrics": ("--run.system-metrics",),
}
"""{short name: the flags that it may be, of which a program has one}."""
_GPUS = "--gpus"
_FEWEST, _MOST = "--scaling.num-workers", "--scaling.max-workers"
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def flags_of(kind: type[Any], above: str = "") -> set[str]:
    """Returns the flags of a dataclass and of those in it: "--data.path"; of a switch also "--data.no-...".

    Args:
        above: names above this dataclass, such as "data."; a field's metadata is not looked at.
    """
    flags = set[str]()
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name, hint = field.name.replace("_", "-"), hints[field.name]
        if dataclasses.is_dataclass(hint):
            flags |= flags_of(hint, f"{above}{name}.")  # type: ignore[arg-type]
        else:
            flags |= {f"--{above}{part}" for part in ([name, f"no-{name}"] if hint is bool else [name])}
    return flags


def short_names(known: Iterable[str]) -> dict[str, str]:
    """Returns {short name: full flag} of those that a program with these flags takes and does not have itself."""
    known = set(known)
    found = {short: next((full for full in fulls if full in known), None) for short, fulls in SHORT.items()}
    return {short: full for short, full in found.items() if full and short not in known}


def full_names(words: Iterable[str], known: set[str]) -> list[str]:
    """Returns the words of a command line with every short name replaced by the flag of this program.

    `--gpus 4` is 4 workers with one GPU each, `--gpus 0` is no GPU. `--workers 2..8` is from 2 to 8 workers.

    Raises:
        UserError: for a flag that the program does not have; it names the nearest.
    """
    short, waiting, found = short_names(known), list(words), list[str]()
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if not name.startswith("--") or name in known or name == "--help" or name.startswith("--tyro"):
            found.append(word)
        elif name in short:
            found.append(f"{short[name]}{equals}{value}")
        elif name == _GPUS and "--workers" in short:
            found += _gpus(value if equals else waiting.pop(0) if waiting else "", words, short)
        else:
            raise UserError(f"There is no flag {name}.{_nearest(name, known, short)} --help lists all flags.")
    return _with_range(found) if _MOST in known else found


def _with_range(words: Sequence[str]) -> list[str]:
    """Splits the range of a number of workers into its two flags."""
    found = list[str]()
    for word in words:
        name, _, value = word.rpartition("=")
        limits = _RANGE.fullmatch(value)
        if limits and (name or (found[-1:] or [""])[0]).replace("_", "-") == _FEWEST:
            found += [f"{name}={limits[1]}" if name else limits[1], _MOST, limits[2]]
        else:
            found.append(word)
    return found


def with_short_names(message: str, typed: Iterable[str], known: Iterable[str]) -> str:
    """Returns a message with the short names in the place of full ones, where the command line had the short ones."""
    names = {word.partition("=")[0] for word in typed}
    for short, full in short_names(known).items():
        message = re.sub(rf"{full}(?![\w.-])", short, message) if short in names else message
    return message


def words_of_one(words: Sequence[str], kinds: Mapping[str, type[Any]], common: Iterable[str]) -> list[str]:
    """Returns the words of a command line whose first one names one of `kinds`, with the flags of that one as by
    `full_names`; those for help as they are.

    Args:
        kinds: dataclass of the flags by first word.
        common: flags of every one.

    Raises:
        UserError: for another first word, or none; it names the nearest.
    """
    first, *rest = [*words] or [""]
    if first in ("-h", "--help"):
        return [first]
    if first not in kinds:
        said = f'There is no "{first}".{nearest(first, list(kinds))} ' if first else ""
        raise UserError(f"{said}Expected one of {', '.join(kinds)} as the first word; --help describes them.")
    return [first, *full_names(rest, {*flags_of(kinds[first]), *common})]


def _gpus(number: str, words: Iterable[str], short: Mapping[str, str]) -> list[str]:
    workers = short["--workers"]
    switch, _, _ = workers.rpartition("num-workers")
    if not number.isdigit() and not _RANGE.fullmatch(number):
        raise UserError(f'--gpus is "{number}": give a whole number of GPUs, or 0 for none.')
    if number.isdigit() and not int(number):
        return [f"{switch}no-use-gpu"]
    if given := [word for word in words if word.partition("=")[0] in ("--workers", workers)]:
        raise UserError(f"--gpus {number} means {number} workers with one GPU each: leave out {given[0]}.")
    return [f"{switch}use-gpu", workers, number]


def _nearest(name: str, known: set[str], short: Mapping[str, str]) -> str:
    """Returns ' Did you mean --a.b or --c.b?' by the last part of the names, or by all of one that has more parts."""
    names = sorted({*known, *short, *([_GPUS] if "--workers" in short else [])})
    if "." in name:
        meant = difflib.get_close_matches(name, names, n=1)
    else:
        last = {full: full.rpartition(".")[2].removeprefix("--") for full in names}
        parts = difflib.get_close_matches(name.removeprefix("--"), set(last.values()), n=1)
        meant = [full for full in names if last[full] in parts and short.get(f"--{last[full]}") != full]
    shown = [f"{full} (that is {short[full]})" if full in short else full for full in meant]
    return f" Did you mean {' or '.join(shown)}?" if shown else ""
