"""Worker processes of an evaluation, as Ray tasks; neither their number nor their order changes a result."""

import functools
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
import torch

from distributed_autolora.errors import RunFailedError, UserError, first_line
from distributed_autolora.orchestration.evaluations.worker import EvaluationTask, Evaluator

_MAX_TRIES = 3
# A process keeps its model while it works for others: then only the index of the GPU says which one is its own.
_ALL_GPUS = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}


@dataclass(frozen=True)
class Call:
    """One call of an `Evaluator`'s method, with a name for messages."""

    name: str
    method: str
    arguments: tuple[Any, ...]


class WorkerPool:
    """Runs calls in worker processes, each of which reads model and images once.

    Args:
        num_workers: calls at a time; each has one CPU and one thread, with `use_gpu` also one GPU.
        timeout_s: seconds without any result after which the cluster is asked whether it still has room for a worker.
    """

    def __init__(
        self, task: EvaluationTask, *, num_workers: int, use_gpu: bool = False, timeout_s: float = 600.0
    ) -> None:
        self._task = ray.put(task)
        self._num_workers, self._use_gpu, self._timeout_s = num_workers, use_gpu, timeout_s
        gpu: dict[str, Any] = {"num_gpus": 1, "runtime_env": _ALL_GPUS} if use_gpu else {}
        # Ray's own retries are endless for workers that ran out of memory.
        self._run = ray.remote(num_cpus=1, max_calls=0, max_retries=0, **gpu)(run_evaluator)

    def run(self, calls: Sequence[Call]) -> Iterator[tuple[Call, Any]]:
        """Yields each call with what it returned, as they end; one whose worker is lost is made three times at most.

        A caller that stops early leaves the running calls to end by themselves, or with its connection to Ray.

        Raises:
            UserError: raised by a worker.
            RunFailedError: for a bug, a call that lost three workers, or a cluster without room for one.
        """
        # `ray.cancel` of a call that is just ending can abort this process (github.com/ray-project/ray/pull/54798).
        waiting, running, tries = deque(calls), dict[Any, Call](), Counter[str]()
        while waiting or running:
            while waiting and len(running) < self._num_workers:
                call = waiting.popleft()
                running[self._run.remote([self._task], self._use_gpu, call)] = call
            for reference in self._ended(list(running)):
                call = running.pop(reference)
                try:
                    returned = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise _user_error(error) from error
                except ray.exceptions.RayError as error:  # the worker was lost, its node, or its result
                    tries[call.name] += 1
                    if tries[call.name] == _MAX_TRIES:
                        raise _lost(call, error) from error
                    waiting.appendleft(call)
                else:
                    yield call, returned

    def _ended(self, references: list[Any]) -> list[Any]:
        """Returns references of which one has ended; an empty list after a timeout."""
        ended: list[Any] = ray.wait(references, timeout=self._timeout_s)[0]
        if not ended:
            room = ray.cluster_resources()
            if room.get("CPU", 0) < 1 or room.get("GPU", 0) < int(self._use_gpu):
                raise RunFailedError(
                    f"The cluster has had no room for a worker for {self._timeout_s:g} s: were nodes lost? Finished "
                    "chunks are kept; the same command resumes."
                )
        return ended


class ThisProcess:
    """Runs calls one after another in this process, without Ray."""

    def __init__(self, task: EvaluationTask, *, use_gpu: bool = False) -> None:
        self._evaluator = Evaluator(task, "cuda" if use_gpu else "cpu")

    def run(self, calls: Sequence[Call]) -> Iterator[tuple[Call, Any]]:
        """Yields each call with what it returned, in their order."""
        for call in calls:
            yield call, getattr(self._evaluator, call.method)(*call.arguments)


def run_evaluator(task: list[Any], use_gpu: bool, call: Call) -> Any:
    """Makes a call of this process's evaluator, on the GPU that Ray assigned or on the CPU.

    `task` is a reference to an `EvaluationTask` in a list: Ray would read the task itself for every call otherwise.
    """
    index = None
    if use_gpu:
        (assigned,) = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        index = gpu_index(assigned, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return getattr(_evaluator(task[0], index), call.method)(*call.arguments)


def gpu_index(assigned: str, visible: str | None) -> int:
    """Returns torch's index of the GPU that Ray assigned, among those that are visible to this process."""
    return visible.split(",").index(assigned) if visible else int(assigned)


@functools.lru_cache(maxsize=1)
def _evaluator(task: Any, index: int | None) -> Evaluator:
    if index is not None:
        torch.cuda.set_device(index)
    return Evaluator(ray.get(task), torch.device("cpu") if index is None else torch.device("cuda", index))


def _user_error(error: ray.exceptions.RayTaskError) -> UserError:
    cause = error.cause
    if isinstance(cause, UserError):
        return cause
    return RunFailedError(
        f"A worker failed ({type(cause).__name__}: {first_line(cause)}). Finished chunks are kept; the same "
        "command resumes."
    )


def _lost(call: Call, error: ray.exceptions.RayError) -> RunFailedError:
    return RunFailedError(
        f"{call.name} was lost with its worker {_MAX_TRIES} times ({first_line(error)}): is there enough memory? "
        "Finished chunks are kept; a smaller --chunk-size needs less."
    )
