"""A pool of Ray actors that judges chunks; which actor judged a chunk, and how many there are, changes no result."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions

from distributed_autolora.errors import RunFailedError, UserError, first_line
from distributed_autolora.orchestration.evaluations.worker import Assignment, Judge

_MAX_TRIES = 3


@dataclass
class _Task:
    """Something that a worker is to do, and how often it was lost with its worker."""

    key: Any
    method: str
    argument: Any
    tries: int = 0

    @property
    def what(self) -> str:
        """The task, for people."""
        return f"Chunk {self.key}" if isinstance(self.key, int) else str(self.key)


class Pool:
    """Workers that are replaced when they are lost; use it as a context, so that none is left behind.

    Work goes only to workers that have started: while the cluster has no room for one, the others go on.

    Args:
        assignment: what every worker needs to know.
        num_workers: actors, one CPU and one thread each.
        use_gpu: one GPU for each.
        start_timeout_s: seconds to wait for a worker while there is none at all.
    """

    def __init__(
        self, assignment: Assignment, *, num_workers: int, use_gpu: bool, start_timeout_s: float = 600.0
    ) -> None:
        self._assignment = ray.put(assignment)
        self._actor = ray.remote(num_cpus=1, num_gpus=1 if use_gpu else 0)(Judge)
        self._use_gpu, self._start_timeout_s = use_gpu, start_timeout_s
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._busy: dict[Any, tuple[Any, _Task]] = {}
        self._failed_starts = 0
        for _ in range(num_workers):
            self._start()

    def __enter__(self) -> Pool:
        """Returns the pool."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends all workers, busy or not."""
        for actor in [*self._idle, *self._starting.values(), *(actor for actor, _ in self._busy.values())]:
            ray.kill(actor)

    def work_off(self, tasks: list[tuple[Any, str, Any]]) -> Iterator[tuple[Any, Any]]:
        """Yields (key, returned) of every task as it is finished.

        A task whose worker is lost is given to another, at most three times in all.

        Args:
            tasks: (key, method of `Judge`, its argument) in the order in which they are begun.

        Raises:
            UserError: what a worker refused.
            RunFailedError: for a defect, a task that cost three workers, or when no worker can be started.
        """
        waiting = deque(_Task(*task) for task in tasks)
        while waiting or self._busy:
            while waiting and self._idle:
                actor, task = self._idle.pop(), waiting.popleft()
                self._busy[getattr(actor, task.method).remote(task.argument)] = actor, task
            done = self._wait()
            if done in self._starting:
                self._started(done)
                continue
            actor, task = self._busy.pop(done)
            try:
                returned = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                self._idle.append(actor)
                raise _for_people(error) from error
            except ray.exceptions.RayError as error:  # the worker, its node, or what it was sending
                waiting.appendleft(self._lost(actor, task, error))
                continue
            self._idle.append(actor)
            yield task.key, returned

    def _wait(self) -> Any:
        """Returns what was finished first: a task, or the start of a worker."""
        done, _ = ray.wait(
            [*self._busy, *self._starting], num_returns=1, timeout=None if self._busy else self._start_timeout_s
        )
        if not done:
            raise RunFailedError(
                f"No worker could be started within {self._start_timeout_s:g} s: were nodes lost? Finished chunks are "
                "kept; the same command goes on."
            )
        return done[0]

    def _start(self) -> None:
        actor = self._actor.remote(self._assignment, self._use_gpu)
        self._starting[actor.is_ready.remote()] = actor

    def _started(self, done: Any) -> None:
        """Takes a worker that has started; one that died before is replaced, but not for ever."""
        actor = self._starting.pop(done)
        try:
            ray.get(done)
        except ray.exceptions.RayError as error:
            ray.kill(actor)
            self._failed_starts += 1
            if self._failed_starts >= _MAX_TRIES:
                raise RunFailedError(
                    f"{_MAX_TRIES} workers died at their start ({first_line(error)}): does every node have this "
                    "package and its dependencies? Finished chunks are kept."
                ) from error
            self._start()
            return
        self._failed_starts = 0
        self._idle.append(actor)

    def _lost(self, actor: Any, task: _Task, error: ray.exceptions.RayError) -> _Task:
        """Replaces a lost worker and returns what it was working on."""
        ray.kill(actor)
        self._start()
        task.tries += 1
        if task.tries >= _MAX_TRIES:
            raise RunFailedError(
                f"{task.what} was lost with its worker {_MAX_TRIES} times ({first_line(error)}): is there enough "
                "memory? Finished chunks are kept; a smaller --chunk-size needs less."
            ) from error
        return task


def _for_people(error: ray.exceptions.RayTaskError) -> UserError:
    """Returns the user error that a worker raised, or says that it failed."""
    cause = error.cause
    if isinstance(cause, UserError):
        return cause
    return RunFailedError(
        f"A worker failed ({type(cause).__name__}: {first_line(cause)}). Finished chunks are kept; the same "
        "command goes on with the others."
    )
