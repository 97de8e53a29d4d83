"""Crash reports: one line on stderr for an unexpected error, and its stack trace in a file."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import TracebackType

from distributed_autolora.config import RunConfig, output_home
from distributed_autolora.errors import first_line, masked


def report_crash(
    is_debug: bool, _kind: type[BaseException], error: BaseException, _traceback: TracebackType | None
) -> None:
    """Reports an unexpected error; a hook for `sys.excepthook`, with the stack trace printed for --debug."""
    trace = stack_trace(error)
    line = f"error: this is a bug ({type(error).__name__}: {masked(first_line(error))})"
    kept = _keep(trace)
    where = f"; a crash report is in {kept}: please report it. --debug prints the stack trace." if kept else "."
    print(f"{trace if is_debug or kept is None else ''}{line}{where}", file=sys.stderr, flush=True)


def stack_trace(error: BaseException) -> str:
    """Returns the stack trace of an error and of its causes, without the secrets of URIs."""
    return masked("".join(traceback.format_exception(error)))


def _keep(trace: str) -> Path | None:
    """Writes a stack trace below the output folder, or else where temporary files are; None: nowhere."""
    for folder in (output_home(RunConfig()) / "errors", Path(tempfile.gettempdir())):
        path = folder / f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{' '.join(masked(word) for word in sys.argv)}\n\n{trace}")
            return path
    return None
