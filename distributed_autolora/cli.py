"""What all programs in jobs/ share: flags, YAML files and recipes become one config; errors become one line."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn, TypeVar, get_type_hints

import tyro

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.config.reading import fraction, nearest
from distributed_autolora.config.recipes import RECIPES_IN_WORDS, recipe
from distributed_autolora.config.yaml_files import read_config
from distributed_autolora.console import be_quiet
from distributed_autolora.crash_report import report_crash, stack_trace
from distributed_autolora.errors import RunFailedError, UserError, refuse_secret

Flags = TypeVar("Flags")

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
COMMON_FLAGS = ("--quiet", "--debug")
COMMON_HELP = (
    "Every program takes --quiet (only results, warnings and errors are printed) and --debug (an error is printed with "
    "its stack trace)."
)
CONTINUES = "The same command resumes from the last checkpoint, if there is one."
_FRAME = re.compile("\u256d.*|[\u2500-\u257f]")  # the box that tyro draws around a message, with its title
_DOTTED = re.compile(
    r"(?<![\w./-])(?P<give>[Gg]ive )?(?:--)?(?P<group>[a-z_]+)\.(?P<negation>no-)?(?P<name>[a-z][a-z_-]*)"
    r"(?![\w/-]|\.\w)(?(give)(?: (?P<value>\d+)(?![\w/]|\.\w))?)"
)
_FLOAT = re.compile(r"\bfloat\b")
_FRACTION = re.compile(r"\d+(\.\d+)?/\d+(\.\d+)?")
_given: list[str] = []


@dataclass(frozen=True, kw_only=True)
class TrainingFlags:
    """The command line of a program that trains."""

    config: Path | None = None
    """YAML file that gives every value no flag names; each run writes its own as config.yaml."""
    fresh: bool = False
    """Start the next number of this run, even if it exists."""
    evaluate: str = "quick"
    """Attacks to judge the finished model by, such as pgd10,autoattack; quick: check its PGD result; none: neither."""
    experiment: Annotated[ExperimentConfig, tyro.conf.arg(name="")] = field(default_factory=ExperimentConfig)


def parse_training_flags(
    description: str, default_recipe: str, arguments: Sequence[str] | None = None
) -> TrainingFlags:
    """Reads the command line of a program that trains.

    A recipe or a YAML file gives every value that no flag names.

    Args:
        description: what the program does, for --help.
        default_recipe: the recipe used without --recipe and --config.
        arguments: the command line; None: this process's.

    Raises:
        UserError: for an unknown flag (names the nearest known one), a value that cannot be read, an unknown recipe,
            or an unusable file.
        SystemExit: for --help.
    """
    words = _words(arguments)
    names = [*ExperimentConfig().flat(), *(item.name for item in fields(TrainingFlags) if item.name != "experiment")]
    _refuse_unknown_flags(words, names)
    chosen_recipe, file = _value_of(words, "--recipe"), _value_of(words, "--config")
    if chosen_recipe and file:
        raise UserError("Give --recipe or --config, not both: either one names every value.")
    base = read_config(Path(file)) if file else recipe(chosen_recipe or default_recipe)
    numbers = _float_flags(ExperimentConfig)
    with _refusals_in_one_line():
        return tyro.cli(
            TrainingFlags,
            args=_plain_numbers(words, numbers),
            default=TrainingFlags(experiment=base),
            description=f"{description}\n\nRecipes: {RECIPES_IN_WORDS}. The defaults below are those of "
            f"the recipe or file given; without one, of {default_recipe}.\n\n{COMMON_HELP}",
        )


def parse_flags(kind: type[Flags], description: str, arguments: Sequence[str] | None = None) -> Flags:
    """Reads the command line of a program whose flags are the fields of a flat dataclass.

    Args:
        kind: the dataclass; its docstrings are the help texts.
        description: what the program does, for --help.
        arguments: the command line; None: this process's.

    Raises:
        UserError: for an unknown flag (names the nearest known one), a missing one, or a value that cannot be read.
        SystemExit: for --help.
    """
    words = _words(arguments)
    _refuse_unknown_flags(words, list(get_type_hints(kind)))
    with _refusals_in_one_line():
        words = _plain_numbers(words, _float_flags(kind))
        return tyro.cli(kind, args=words, description=f"{description}\n\n{COMMON_HELP}")


def parse_by(read: Callable[[str], Flags], description: str) -> Flags:
    """Reads this process's command line by a function of a program's own, which takes the description.

    Raises:
        UserError: for what it refuses by ending the process.
        SystemExit: for --help.
    """
    _words(None)
    with _refusals_in_one_line():
        return read(f"{description}\n\n{COMMON_HELP}")


def common_flags() -> list[str]:
    """Returns those of `COMMON_FLAGS` that this program was given, for a program that it starts."""
    return list(_given)


def run_program(
    main: Callable[[], None], *, when_interrupted: str = CONTINUES, flags: type[Any] | None = None
) -> NoReturn:
    """Runs a program and ends the process: 0 done, 1 failed, 2 refused input, 130 interrupted.

    What ended it is one line on stderr; a stack trace is shown with --debug only, and a crash report is kept in a file.
    The flags that all programs share are obeyed here, and taken out of the command line.

    Args:
        main: the program.
        when_interrupted: what Ctrl-C, SIGTERM or a closed terminal leaves, for people.
        flags: the dataclass of its flags, if they are not those of a program that trains.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as SIGHUP is under nohup
            signal.signal(number, _interrupt)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _given[:] = [flag for flag in COMMON_FLAGS if flag in sys.argv[1:]]
    sys.argv[1:] = [word for word in sys.argv[1:] if word not in COMMON_FLAGS]
    if "--quiet" in _given:
        be_quiet()
    is_debug = "--debug" in _given
    sys.excepthook = partial(report_crash, is_debug)
    try:
        main()
        said, status = "", DONE
    except UserError as error:
        status = FAILED if isinstance(error, RunFailedError) else REFUSED
        said = f"{stack_trace(error) if is_debug else ''}error: {in_flags_of(flags, str(error), sys.argv[1:])}"
    except BrokenPipeError:
        said, status = "error: nobody reads the output of this program any more.", FAILED
    except KeyboardInterrupt:
        said, status = f"\nInterrupted. {when_interrupted}", INTERRUPTED
    with contextlib.suppress(OSError):  # a closed terminal
        print(said, end="\n" if said else "", file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except OSError:  # its reader has left: what it did not take must not change the exit status
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def in_flags_of(flags: type[Any] | None, message: str, typed: Sequence[str] = ()) -> str:
    """Returns a message that names values of a training config with the flags that a program has for them.

    Args:
        flags: the dataclass of its flags; None: a program that trains, whose flags they are.
        message: such as "... Lower --scaling.num-workers.".
        typed: the words of the command line; a flag among them that nothing turns off is to be left out.
    """
    if flags is None:
        return message
    own = {item.name for item in fields(flags)}
    renamed = {key: key.rpartition(".")[2] for key in ExperimentConfig().flat()} | {"data.path": "data"}

    def rename(match: re.Match[str]) -> str:
        group, negation, name = match["group"], match["negation"] or "", match["name"].replace("-", "_")
        key = f"{group}.{name}"
        if key not in renamed:
            return match[0]
        give, flag = match["give"] or "", f"--{negation}{renamed[key].replace('_', '-')}"
        only_on = bool(negation) and key in getattr(flags, "ONLY_ON", ())
        if renamed[key] in own and not only_on:
            return " ".join(filter(None, [f"{give}{flag}", match["value"]]))
        if "config" not in own:
            return match[0]
        value = "false" if negation else match["value"]
        if not give or not value:
            return f"{give}{key}{': false' if negation else ''} in the file of --config"
        positive = flag.replace("--no-", "--")
        if only_on and positive in typed:
            leave = "Leave" if give[0].isupper() else "leave"
            return f"{leave} out {positive}, and for a task of the paper give --config a file with {key}: {value}"
        return f"{give}--config a file with {key}: {value}"

    return _DOTTED.sub(rename, message)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _refusals_in_one_line() -> Iterator[None]:
    """Turns what tyro prints about a bad command line into a `UserError`."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(f"{' '.join(_FRAME.sub(' ', said.getvalue()).split())}") from None


def _float_flags(kind: type[Any]) -> set[str]:
    """Returns the names of a dataclass's fields that take a float, {"train_attack.epsilon", ...}; `None` may be one."""
    names = set()
    for name, hint in get_type_hints(kind).items():
        inner = _float_flags(hint) if isinstance(hint, type) and is_dataclass(hint) else set()
        names |= {f"{name}.{each}" for each in inner} | ({name} if _FLOAT.search(str(hint)) else set())
    return names


def _plain_numbers(words: list[str], numbers: set[str]) -> list[str]:
    """Returns the words with 8/255 as the decimal that it is, behind flags (`numbers`) that take a number.

    Raises:
        UserError: for a division by zero.
    """
    plain = list(words)
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=") if "=" in word else (words[i - 1] if i else "", "", word)
        if flag.removeprefix("--").replace("-", "_") not in numbers or not _FRACTION.fullmatch(value):
            continue
        try:
            number = repr(fraction(value))
        except ZeroDivisionError:
            raise UserError(f'{flag} is "{value}": that divides by zero. Give a number.') from None
        plain[i] = f"{flag}={number}" if equals else number
    return plain


def _words(arguments: Sequence[str] | None) -> list[str]:
    """Returns the words of a command line; none may hold a password or token."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for before, word in zip(["", *words], words, strict=False):
        flag, equals, _ = word.partition("=")
        refuse_secret(flag if equals and flag.startswith("--") else before or "The command line", word)
    return words


def _value_of(words: list[str], flag: str) -> str | None:
    for position, word in enumerate(words):
        if word == flag and position + 1 < len(words):
            return words[position + 1]
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


def _refuse_unknown_flags(words: list[str], flags: list[str]) -> None:
    names = [name.replace("_", "-") for name in flags]
    negated = [re.sub(r"([^.]+)$", r"no-\1", name) for name in names]
    known = {f"--{name}" for name in [*names, *negated, "help"]}
    for word in words:
        flag = word.partition("=")[0].replace("_", "-")
        if word.startswith("--") and flag not in known:
            shown = [*(f"--{name}" for name in names), *COMMON_FLAGS]
            raise UserError(f'There is no flag "{flag}".{nearest(flag, shown)} --help lists all flags.')
