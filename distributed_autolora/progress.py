"""One progress bar for runs, evaluations and studies: on a terminal alone; logs get plain lines instead."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from distributed_autolora.console import is_live

_BAR_COLUMNS = 16
# Steps take long: the time left is estimated from all of them, not from the last half minute.
_ESTIMATE_FROM_S = 86_400


class ProgressBar:
    """A line that is redrawn below what is printed meanwhile: name, bar, position, elapsed time, time left, a text.

    Nothing of it remains when it ends. Where output is no terminal it shows nothing.

    Args:
        done: how many an earlier process finished.
    """

    def __init__(self, name: str, total: int, done: int = 0, text: str = "") -> None:
        self._progress: Progress | None = None
        if not is_live():
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(_BAR_COLUMNS),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("left  {task.fields[text]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        )
        console = Console(file=sys.stdout, force_terminal=True, highlight=False, emoji=False)
        self._progress = Progress(
            *columns,
            console=console,
            transient=True,
            expand=True,
            redirect_stderr=sys.stderr.isatty(),  # warnings that go to a file must not be drawn here instead
            speed_estimate_period=_ESTIMATE_FROM_S,
        )
        self._task = self._progress.add_task(name, total=total, completed=done, text=text)

    def update(self, done: int, text: str = "") -> None:
        """Redraws the line."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, text=text)

    def __enter__(self) -> Self:
        """Begins to draw."""
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes what was drawn."""
        if self._progress is not None:
            self._progress.stop()
