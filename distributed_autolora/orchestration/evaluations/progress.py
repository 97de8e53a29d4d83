"""What a person sees while chunks are judged: a bar on a terminal, one line a chunk in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from distributed_autolora.console import is_live, print_line
from distributed_autolora.records import AccuracyCount
from distributed_autolora.reporting.evaluation import chunk_line

Say = Callable[[int, dict[str, AccuracyCount], float], None]


@contextmanager
def chunk_progress(in_all: int, done: int) -> Iterator[Say]:
    """Shows the progress of an evaluation while the block runs.

    Args:
        in_all: number of chunks.
        done: chunks that an earlier attempt finished.

    Yields:
        say(index of a chunk, its counts, the seconds it took).
    """
    if is_live():
        with _bar(in_all, done) as say:
            yield say
    else:
        yield _lines(in_all, done)


def _lines(in_all: int, done: int) -> Say:
    start, finished = time.monotonic(), 0

    def say(index: int, counts: dict[str, AccuracyCount], seconds: float) -> None:
        nonlocal finished
        finished += 1
        left = (time.monotonic() - start) / finished * (in_all - done - finished)
        print_line(chunk_line(done + finished, in_all, index, counts, seconds, left))

    return say


@contextmanager
def _bar(in_all: int, done: int) -> Iterator[Say]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("chunks"),
        BarColumn(24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[worst]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    sums: dict[str, AccuracyCount] = {}
    # A chunk takes long: the time left is estimated from all of them, not from the last half minute.
    with Progress(*columns, speed_estimate_period=86_400) as progress:
        task = progress.add_task("", total=in_all, completed=done, worst="")

        def say(_: int, counts: dict[str, AccuracyCount], __: float) -> None:
            for name, count in counts.items():
                sums[name] = sums.get(name, AccuracyCount()) + count
            name, count = list(sums.items())[-1]
            shown = f"{name.removeprefix('robust_accuracy/')} {100 * count.accuracy:.1f} %"
            progress.update(task, advance=1, worst=shown)

        yield say
