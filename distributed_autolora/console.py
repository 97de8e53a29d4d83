"""Progress messages (--quiet suppresses them, a terminal gets a live view), and how this program was typed."""

import contextlib
import locale
import os
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

_quiet = threading.Event()
_is_call = ContextVar("_is_call", default=False)


def be_quiet() -> None:
    """Suppresses progress messages from now on; results, warnings and errors remain."""
    _quiet.set()


def is_quiet() -> bool:
    """Tells whether only results, warnings and errors are wanted."""
    return _quiet.is_set()


def is_live() -> bool:
    """Tells whether standard output is a terminal that can redraw lines, without --quiet."""
    return not is_quiet() and sys.stdout.isatty() and os.environ.get("TERM", "dumb").lower() not in ("dumb", "unknown")


def print_line(line: str) -> None:
    """Prints a progress message and flushes stdout; with --quiet nothing."""
    if not is_quiet():
        print(line, flush=True)


def job_file() -> Path | None:
    """Returns the file in jobs/ that this process was started from; None for the command `autolora` and others."""
    program = Path(sys.argv[0])
    return program.resolve() if program.suffix == ".py" and program.absolute().parent.name == "jobs" else None


def command(program: str) -> str:
    """Returns how to type a program, as this one was: "autolora evaluate" or "python jobs/evaluate.py"."""
    if job_file() is None:
        return f"autolora {program}"
    return "python jobs/" + {"data prepare": "prepare_data.py", "data check": "prepare_data.py check"}.get(
        program, f"{program}.py"
    )


@contextlib.contextmanager
def called_from_python() -> Iterator[None]:
    """Within the block, messages name arguments of functions instead of flags."""
    token = _is_call.set(True)
    try:
        yield
    finally:
        _is_call.reset(token)


def command_or_call() -> str:
    """Returns "command" for a program, "call" within `called_from_python`."""
    return "call" if _is_call.get() else "command"


def switch(name: str) -> str:
    """Returns how to type a switch: "--fresh", or "fresh=True" within `called_from_python`."""
    return f"{name}=True" if _is_call.get() else f"--{name.replace('_', '-')}"


def use_utf8() -> None:
    """Starts this program again in Python's UTF-8 mode where the locale has another encoding.

    Names and texts in Arrow, Parquet, YAML and JSON are UTF-8 whatever the locale says. Ray's workers inherit the mode.
    """
    if not sys.flags.utf8_mode and locale.getencoding().lower().replace("-", "") != "utf8":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"PYTHONUTF8": "1"})
