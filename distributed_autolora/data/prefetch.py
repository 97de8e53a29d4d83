"""Loads what comes next in a thread while the caller works on what came before."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetched(load: Callable[[T], R], items: Iterable[T], *, ahead: int = 2) -> Iterator[R]:
    """Yields `load(item)` of each item in order, at most `ahead` of them loaded before they are asked for.

    An error of `load` is raised where its result would have come. Closing the iterator early waits for the
    load that runs and drops the others. `load` runs in one background thread; `items` are taken as they are loaded.

    Raises:
        ValueError: for `ahead` below 1.
    """
    if ahead < 1:
        raise ValueError(f"ahead must be at least 1, not {ahead}")
    return _prefetched(load, items, ahead)


def _prefetched(load: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    background = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(background.submit(load, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        background.shutdown(cancel_futures=True)
