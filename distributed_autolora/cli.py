"""The command line of all programs: flags, YAML files and recipes; exit statuses; one-line errors."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Annotated, NoReturn, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo
from tyro.extras import subcommand_cli_from_dict

from distributed_autolora.config import ExperimentConfig, RunConfig, output_home
from distributed_autolora.config.experiment import fraction
from distributed_autolora.config.file import read_config_file
from distributed_autolora.config.flags import flags_of, full_names, short_names, with_short_names, words_of_one
from distributed_autolora.config.recipes import RECIPES_IN_WORDS, recipe
from distributed_autolora.console import be_quiet, use_utf8
from distributed_autolora.errors import RunFailedError, UserError, first_line, is_utf8, masked, refuse_secret

Flags = TypeVar("Flags")

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
COMMON_FLAGS = ("--quiet", "--debug")
COMMON_HELP = (
    "Every program takes --quiet (only results, warnings and errors are printed) and --debug (an error is printed with "
    "its stack trace)."
)
CONTINUES = "The same command resumes from the last checkpoint, if there is one."
_RULE = re.compile("[\u2570\u2500\u256f]{3,}|-{10,}")  # in the box that tyro draws around a message, also in ASCII
_NUMBERS = ConstructorRegistry()
_given: list[str] = []


@dataclass(frozen=True, kw_only=True)
class TrainingFlags:
    """The command line of a program that trains."""

    config: Path | None = None
    """YAML file, laid over the recipe that it names; each run writes its own, complete, as config.yaml."""
    fresh: bool = False
    """Start the next number of this run, even if it exists."""
    in_process: bool = False
    """Train and evaluate in this process: one worker, no Ray."""
    evaluate: str = "quick"
    """Attacks to evaluate the finished model by (pgd10,autoattack); quick: check its PGD result; none: neither."""
    experiment: Annotated[ExperimentConfig, tyro.conf.arg(name="")] = field(default_factory=ExperimentConfig)


_TRAINING = {flag.replace("--experiment.", "--") for flag in flags_of(TrainingFlags)} | {*COMMON_FLAGS}


def parse_training_flags(
    description: str, default_recipe: str, arguments: Sequence[str] | None = None
) -> TrainingFlags:
    """Reads the command line of a program that trains; `arguments` None: this process's.

    A recipe or a YAML file gives every value that no flag names.

    Raises:
        UserError: for an unknown flag, a value that cannot be read, an unknown recipe, or an unusable file.
        SystemExit: for --help.
    """
    words = full_names(typed := _words(arguments), _TRAINING)
    chosen_recipe, file = _value_of(words, "--recipe"), _value_of(words, "--config")
    if chosen_recipe and file:
        raise UserError("Give --recipe or --config, not both: a file names its own recipe.")
    base = read_config_file(Path(file)) if file else recipe(chosen_recipe or default_recipe)
    with _NUMBERS, _refusals_in_one_line(typed, _TRAINING):
        return tyro.cli(
            TrainingFlags,
            args=words,
            default=TrainingFlags(experiment=base),
            description=f"{description}\n\nRecipes: {RECIPES_IN_WORDS}. The defaults below are those of "
            f"the recipe or file given; without one, of {default_recipe}.\n\n{_help(_TRAINING)}",
        )


def parse_flags(kind: type[Flags], description: str, arguments: Sequence[str] | None = None) -> Flags:
    """Reads the command line of a program whose flags are the fields of a flat dataclass, with its docstrings as help.

    Raises:
        UserError: for an unknown flag, a missing one, or a value that cannot be read.
        SystemExit: for --help.
    """
    known = flags_of(kind) | {*COMMON_FLAGS}
    words = full_names(typed := _words(arguments), known)
    with _NUMBERS, _refusals_in_one_line(typed, known):
        return tyro.cli(kind, args=words, description=f"{description}\n\n{_help(known)}")


def parse_one_of(kinds: Mapping[str, type[Flags]], text: str, arguments: Sequence[str] | None = None) -> Flags:
    """Reads the command line of a program whose first word chooses among flat dataclasses, as `parse_flags` does."""
    words, pairs_off = words_of_one(_words(arguments), kinds, COMMON_FLAGS), (tyro.conf.FlagCreatePairsOff,)
    with _NUMBERS, _refusals_in_one_line():
        return subcommand_cli_from_dict(
            dict(kinds), args=words, description=f"{text}\n\n{COMMON_HELP}", config=pairs_off
        )


def common_flags() -> list[str]:
    """Returns which of `COMMON_FLAGS` this program was given, for a program that it starts."""
    return list(_given)


def typed_command() -> str:
    """Returns this process's command line, as it was typed and for a shell, without `COMMON_FLAGS`."""
    name = Path(sys.argv[0]).name
    return shlex.join([*(["python", f"jobs/{name}"] if name.endswith(".py") else name.split()), *sys.argv[1:]])


def run_program(main: Callable[[], None], *, when_interrupted: str = CONTINUES) -> NoReturn:
    """Runs a program and ends the process: 0 done, 1 failed, 2 refused input, 130 interrupted.

    An error is one line on stderr, with its stack trace under --debug only; an unexpected one leaves a crash report.
    The flags of all programs are handled here, and removed from the command line. `when_interrupted` is printed after
    Ctrl-C, SIGTERM or a closed terminal.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as SIGHUP is under nohup
            signal.signal(number, _interrupt)
    use_utf8()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.showwarning = _show_warning
    _given[:] = [flag for flag in COMMON_FLAGS if flag in sys.argv[1:]]
    sys.argv[1:] = [word for word in sys.argv[1:] if word not in COMMON_FLAGS]
    if "--quiet" in _given:
        be_quiet()
    sys.excepthook = partial(_report_crash, is_debug := "--debug" in _given)
    try:
        main()
        message, status = "", DONE
    except UserError as error:
        status = FAILED if isinstance(error, RunFailedError) else REFUSED
        message = f"{_stack_trace(error) if is_debug else ''}error: {error}"
    except BrokenPipeError:
        message, status = "error: the reader of this program's output has closed it.", FAILED
    except KeyboardInterrupt:
        message, status = f"\nInterrupted. {when_interrupted}", INTERRUPTED
    with contextlib.suppress(OSError):  # a closed terminal
        print(message, end="\n" if message else "", file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except OSError:  # its reader has left: what it did not take must not change the exit status
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def _show_warning(message: Warning | str, *_where: object, **_more: object) -> None:
    print(f"warning: {masked(str(message)).strip().splitlines()[0]}", file=sys.stderr)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _report_crash(
    is_debug: bool, _kind: type[BaseException], error: BaseException, _traceback: TracebackType | None
) -> None:
    """Reports an unexpected error in one line on stderr, with its stack trace in a file; prints it for --debug."""
    trace = _stack_trace(error)
    line = f"error: this is a bug ({type(error).__name__}: {masked(first_line(error))})"
    kept = _keep_trace(trace)
    where = f"; a crash report is in {kept}: please report it. --debug prints the stack trace." if kept else "."
    print(f"{trace if is_debug or kept is None else ''}{line}{where}", file=sys.stderr, flush=True)


def _stack_trace(error: BaseException) -> str:
    return masked("".join(traceback.format_exception(error)))


def _keep_trace(trace: str) -> Path | None:
    """Writes a stack trace below the output folder, or else where temporary files are; None: nowhere."""
    for folder in (output_home(RunConfig()) / "errors", Path(tempfile.gettempdir())):
        path = folder / f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{' '.join(masked(word) for word in sys.argv)}\n\n{trace}")
            return path
    return None


@contextlib.contextmanager
def _refusals_in_one_line(typed: Sequence[str] = (), known: Iterable[str] = ()) -> Iterator[None]:
    """Turns what tyro prints about a bad command line into a `UserError`, with the short names that were typed."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            yield
    except SystemExit as end:
        if not end.code:
            raise
        _title, _, text = printed.getvalue().replace("\u2502", " ").partition("\n")
        sentences = [
            " ".join(part.split()).rstrip(".") for part in _RULE.split(text) if "For full helptext" not in part
        ]
        message = ". ".join([*filter(None, sentences), "--help lists all flags."])
        raise UserError(with_short_names(message, typed, known)) from None


@_NUMBERS.primitive_rule
def _number(flag: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[float] | None:
    if flag.type is not float:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT",
        instance_from_str=lambda words: fraction(words[0]),
        is_instance=lambda value: isinstance(value, float),
        str_from_instance=lambda value: [str(value)],
    )


def _help(known: set[str]) -> str:
    named = ", ".join(f"{short} ({full})" for short, full in short_names(known).items())
    gpus = "--gpus N (N workers with one GPU each; 0: no GPU)"
    return f"Short names: {named}, {gpus}.\n\n{COMMON_HELP}" if named else COMMON_HELP


def _words(arguments: Sequence[str] | None) -> list[str]:
    words = list(sys.argv[1:] if arguments is None else arguments)
    for before, word in zip(["", *words], words, strict=False):
        flag, equals, _ = word.partition("=")
        if not is_utf8(word):
            raise UserError(f"The command line has a name that is not UTF-8: {word!a}. Rename the file or folder.")
        refuse_secret(flag if equals and flag.startswith("--") else before or "The command line", word)
    return words


def _value_of(words: list[str], flag: str) -> str | None:
    for position, word in enumerate(words):
        if word == flag and position + 1 < len(words):
            return words[position + 1]
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None
