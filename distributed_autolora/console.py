"""Progress messages: --quiet suppresses them, a terminal gets a live view."""

from __future__ import annotations

import os
import sys
import threading

_quiet = threading.Event()


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
