"""The state of a run on a terminal, redrawn in place below the lines of its epochs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distributed_autolora.records import EpochRecord
from distributed_autolora.reporting.format import attack_label, compact, duration, left_text

_MOST_COLUMNS = 80
_BAR_COLUMNS = 24


class LiveView:
    """Three lines on a terminal: position and time left, accuracies on validation, learning rate.

    Nothing of it remains when it ends; what is printed meanwhile goes above it. Colours are left out where NO_COLOR
    is set.

    Args:
        epochs: largest number of epochs of the run.
        before: records that the run had before this process; how long they took says nothing about now.
        clock: seconds from any start.
    """

    def __init__(self, epochs: int, before: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._epochs, self._before, self._clock = epochs, before, clock
        self._seen, self._since = before, clock()
        console = Console(file=sys.stdout, force_terminal=True, highlight=False, emoji=False)
        # Warnings that go to a file must not be drawn here instead.
        is_shared = sys.stderr.isatty()
        self._live = Live(console=console, auto_refresh=False, transient=True, redirect_stderr=is_shared)

    def __enter__(self) -> Self:
        """Begins to draw."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes what was drawn."""
        self._live.stop()

    def update(self, history: Sequence[EpochRecord]) -> None:
        """Draws anew.

        Args:
            history: all records of the run.
        """
        if len(history) > self._seen:
            self._seen, self._since = len(history), self._clock()
        self._live.update(self._lines(history), refresh=True)

    def _lines(self, history: Sequence[EpochRecord]) -> Group:
        width = min(_MOST_COLUMNS, self._live.console.width)
        since = self._clock() - self._since
        lines = [Text(text) for text in (_accuracies(history), _learning_rate(history)) if text]
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        head = Table.grid(padding=(0, 2, 0, 0))
        bar = ProgressBar(total=self._epochs, completed=len(history), width=_BAR_COLUMNS)
        head.add_row(Text(self._position(history, since), style="bold"), bar, Text(self._left(history, since)))
        return Group(head, *lines)

    def _position(self, history: Sequence[EpochRecord], since: float) -> str:
        if self._is_trained(history):
            return f"judging the chosen model {duration(since)}"
        begins = "" if len(history) > self._before else "workers start, "
        return f"{begins}epoch {len(history) + 1}/{self._epochs} {duration(since)}"

    def _left(self, history: Sequence[EpochRecord], since: float) -> str:
        left = None if self._is_trained(history) else seconds_left(history, self._before, self._epochs)
        return "" if left is None else left_text(max(1.0, left - since))

    def _is_trained(self, history: Sequence[EpochRecord]) -> bool:
        return bool(history) and (len(history) >= self._epochs or history[-1].stopped)


def seconds_left(history: Sequence[EpochRecord], before: int, epochs: int) -> float | None:
    """Returns the mean duration of the last epochs, five at most, times those left; None: none was measured yet.

    Args:
        history: all records of the run up to the epoch that has just ended.
        before: how many of them are older than this process, and were measured on who knows which workers.
        epochs: largest number of epochs of the run.
    """
    recent: list[float] = [record.epoch_seconds for record in history[before:][-5:]]
    return (epochs - len(history)) * sum(recent) / len(recent) if recent else None


def _accuracies(history: Sequence[EpochRecord]) -> str:
    if not history:
        return "the time left is known after the first epoch"
    last = history[-1]
    robust, natural = _per_cent(last.robust.accuracy), _per_cent(last.natural.accuracy)
    chosen = f"epoch {last.best_epoch} ({_per_cent(last.best_robust_accuracy)})"
    return f"validation: {attack_label(last.attack)} {robust}, natural {natural}; chosen so far: {chosen}"


def _learning_rate(history: Sequence[EpochRecord]) -> str:
    return f"learning rate {compact(history[-1].next_lr)}" if history else ""


def _per_cent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
