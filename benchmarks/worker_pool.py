"""Processes of one thread each that hold a state and call functions on it, all at once or in turn."""

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType
from typing import Any, Self

import torch


class WorkerPool:
    """Processes by name; `states` are picklable functions that make the state of each process there."""

    def __init__(self, states: Mapping[str, Callable[[], Any]]) -> None:
        # Set before the new processes import torch; the second one silences its profiler.
        os.environ.update(OMP_NUM_THREADS="1", KINETO_LOG_LEVEL="99")
        context = multiprocessing.get_context("spawn")
        self._processes = {
            name: ProcessPoolExecutor(1, context, initializer=_start, initargs=(make,)) for name, make in states.items()
        }

    def __enter__(self) -> Self:
        self.call(list(self._processes), _is_ready)
        return self

    def call(self, names: Sequence[str], function: Callable[..., Any], *args: Any) -> list[Any]:
        """Returns what `function(state, *args)` returns in these processes, which run it at the same time."""
        return self.map(dict.fromkeys(names, args), function)

    def map(self, arguments: Mapping[str, Sequence[Any]], function: Callable[..., Any]) -> list[Any]:
        """As `call`, with each process's own arguments."""
        futures = [self._processes[name].submit(_call, function, *own) for name, own in arguments.items()]
        return [future.result() for future in futures]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            process.shutdown(cancel_futures=True)


def in_fresh_process(function: Callable[..., Any], *args: Any, environment: Mapping[str, str] | None = None) -> Any:
    """Returns what `function` returns in a new process of one thread that has further environment variables."""
    before = dict(os.environ)
    os.environ.update({"OMP_NUM_THREADS": "1", **(environment or {})})
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(function, args)
    finally:
        os.environ.clear()
        os.environ.update(before)


_state: list[Any] = []
"""The state of this worker process."""


def _start(make: Callable[[], Any]) -> None:
    torch.set_num_threads(1)
    _state.append(make())


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(_state[0], *args)


def _is_ready(state: Any) -> bool:
    return True
