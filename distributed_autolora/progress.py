"""One progress bar for runs, evaluations and studies: on a terminal alone; logs get plain lines instead."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from distributed_autolora.console import is_live

_BAR_COLUMNS = 16
# Steps take long: the time left is estimated from all of them, not from the last half minute.
_ESTIMATE_FROM_S = 86_400


class ProgressBar(Progress):
    """A line that is redrawn below what is printed meanwhile: name, bar, position, elapsed time, time left, a text.

    Nothing of it remains when its block ends. Where output is no terminal it shows nothing.

    Args:
        done: how many an earlier process finished.
    """

    def __init__(self, name: str, total: int, done: int = 0, text: str = "") -> None:
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
        self._task = self.add_task(name, total=total, completed=done, text=text)

    def show(self, done: int, text: str = "") -> None:
        """Redraws the line with `done` steps finished; the text replaces the earlier one."""
        self.update(self._task, completed=done, text=text)
