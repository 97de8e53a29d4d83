"""One progress bar for all that takes long: on a terminal a line that is redrawn, in a log at most a line a minute."""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from distributed_autolora.console import is_live, print_line

Item = TypeVar("Item")

LOG_EVERY_S = 60.0
"""Seconds between two lines in a log."""
_BAR_COLUMNS = 16
# Steps take long: the time left is estimated from all of them, not from the last half minute.
_ESTIMATE_FROM_S = 86_400


class ProgressBar(Progress):
    """A line that is redrawn below what is printed meanwhile: name, bar, position, elapsed time, time left, a text.

    Nothing of it remains when its block ends. Where output is no terminal it shows nothing, or a line a minute.

    Args:
        done: how many an earlier process finished.
        log: print a line a minute where there is no terminal, from the first minute on.
    """

    def __init__(self, name: str, total: int, done: int = 0, text: str = "", *, log: bool = False) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(_BAR_COLUMNS),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("left  {task.fields[text]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            console=Console(file=sys.stdout, force_terminal=True, highlight=False, emoji=False),
            transient=True,
            expand=True,
            redirect_stderr=sys.stderr.isatty(),  # warnings that go to a file must not be drawn here instead
            speed_estimate_period=_ESTIMATE_FROM_S,
            disable=not is_live(),
        )
        self._name, self._total, self._logged = name, total, time.monotonic() if log and not is_live() else None
        self._task = self.add_task(name, total=total, completed=done, text=text)

    def show(self, done: float, text: str = "") -> None:
        """Redraws the line with `done` steps finished, part of a step included; the text replaces the earlier one."""
        self.update(self._task, completed=done, text=text)
        if self._logged is not None and time.monotonic() - self._logged >= LOG_EVERY_S:
            self._logged = time.monotonic()
            print_line(f"{self._name} {math.ceil(done)} of {self._total}{f': {text}' if text else ''}")


def shown(items: Sequence[Item], name: str) -> Iterator[Item]:
    """Yields the items, and shows how many were taken, as `ProgressBar` does with `log`."""
    with ProgressBar(name, len(items), log=True) as bar:
        for done, item in enumerate(items):
            bar.show(done)
            yield item
