"""What a person sees while a run goes on: one line an epoch, and on a terminal a live view below them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.console import is_live, print_line
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.orchestration.runs.live_view import LiveView, seconds_left
from distributed_autolora.reporting.masking import masking_warning
from distributed_autolora.reporting.run.table import epoch_header, epoch_line

_POLL_S = 0.3


@contextmanager
def epoch_lines(folder: RunFolder, config: ExperimentConfig, say: Callable[[str], None] = print_line) -> Iterator[None]:
    """Says one line for each epoch that the run's history gains while the block runs.

    Args:
        folder: the run's folder.
        config: of the run.
        say: takes a line.
    """
    done = threading.Event()
    thread = threading.Thread(target=_follow, args=(folder, config, say, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _follow(folder: RunFolder, config: ExperimentConfig, say: Callable[[str], None], done: threading.Event) -> None:
    before = len(folder.history())
    with LiveView(config.optimization.epochs, before) if is_live() else nullcontext() as view:
        _say_epochs(folder, config, before, say, done, view)


def _say_epochs(
    folder: RunFolder,
    config: ExperimentConfig,
    before: int,
    say: Callable[[str], None],
    done: threading.Event,
    view: LiveView | None,
) -> None:
    said, epochs = before, config.optimization.epochs
    rule = config.schedule.rule if config.schedule.name == "automatic" else None
    headed, last = False, False
    while not last:
        # The history is read once more after the run ended, so that its last epoch is said too.
        last = done.wait(_POLL_S)
        history = folder.history()
        for record in history[said:]:
            if not headed:
                say(epoch_header(epochs))
                headed = True
            left = seconds_left(history[: record.epoch], before, epochs)
            say(epoch_line(record, epochs=epochs, seconds_left=left))
            if warning := masking_warning(record, name=folder.name, method=config.method.name, rule=rule):
                print(f"warning: {warning}", file=sys.stderr, flush=True)
        said = max(said, len(history))
        if view is not None:
            view.update(history)
