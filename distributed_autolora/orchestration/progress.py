"""What a person sees while a run goes on: one line an epoch."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from distributed_autolora.orchestration.run_folder import RunFolder
from distributed_autolora.reporting.masking import masking_warning
from distributed_autolora.reporting.terminal import epoch_header, epoch_line

_POLL_S = 0.3


def print_line(line: str) -> None:
    """Prints a line at once, whatever stdout is."""
    print(line, flush=True)


@contextmanager
def epoch_lines(folder: RunFolder, epochs: int, say: Callable[[str], None] = print_line) -> Iterator[None]:
    """Says one line for each epoch that the run's history gains while the block runs.

    Args:
        folder: the run's folder.
        epochs: largest number of epochs.
        say: takes a line.
    """
    done = threading.Event()
    thread = threading.Thread(target=_follow, args=(folder, epochs, say, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _follow(folder: RunFolder, epochs: int, say: Callable[[str], None], done: threading.Event) -> None:
    said = len(folder.history())
    headed, last = False, False
    while not last:
        # The history is read once more after the run ended, so that its last epoch is said too.
        last = done.wait(_POLL_S)
        history = folder.history()
        for record in history[said:]:
            if not headed:
                say(epoch_header(epochs))
                headed = True
            say(epoch_line(record, epochs=epochs, seconds_left=_seconds_left(history, record["epoch"], epochs)))
            if warning := masking_warning(record, folder.name):
                print(f"warning: {warning}", file=sys.stderr, flush=True)
        said = max(said, len(history))


def _seconds_left(history: list[dict[str, Any]], epoch: int, epochs: int) -> float:
    """Returns the mean duration of the last epochs times those that are left."""
    recent: list[float] = [record["seconds/epoch"] for record in history[max(0, epoch - 5) : epoch]]
    return (epochs - epoch) * sum(recent) / len(recent)
