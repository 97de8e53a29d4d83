"""A pool of Ray actors that judges chunks; which actor judged a chunk, and how many there are, changes no result."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import ray
import ray.exceptions

from distributed_autolora.core.metrics import AccuracyCount
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.errors import RunFailedError, UserError
from distributed_autolora.evaluation.attacks import NamedAttack
from distributed_autolora.evaluation.chunks import Chunk, Columns
from distributed_autolora.models.portable import PortableModel

if TYPE_CHECKING:
    import torch
    from torch import nn

    from distributed_autolora.data.images import ImageSource

_MAX_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What every worker of a pool needs to know.

    Attributes:
        model: the model that is judged.
        data_folder: folder or URI of the test files, reachable from every worker.
        rows: positions in the test table, in the order in which chunks count them.
        image_size: side that images are scaled and cut to; None: as they are.
        epsilon: radius of the L-infinity ball.
        attacks: what the chunks are judged by.
        step_size: length of a PGD step; None: epsilon / 4.
    """

    model: PortableModel
    data_folder: str
    rows: tuple[int, ...]
    image_size: int | None
    epsilon: float
    attacks: tuple[NamedAttack, ...]
    step_size: float | None


@dataclass(frozen=True, kw_only=True)
class SanityQuestion:
    """What the sanity checks look at.

    Attributes:
        rows: positions in the test table.
        accuracies: what was measured on all images that were judged.
        seed: of random starts, noise and Square.
    """

    rows: tuple[int, ...]
    accuracies: dict[str, AccuracyCount]
    seed: int


class Judge:
    """What one worker holds: the model on its device, and the test images; both are read with its first task."""

    def __init__(self, assignment: Assignment, use_gpu: bool) -> None:
        self._assignment, self._use_gpu = assignment, use_gpu
        self._threat_model = ThreatModel("linf", assignment.epsilon)

    @cached_property
    def _device(self) -> torch.device:
        import torch

        torch.set_num_threads(1)
        return torch.device("cuda" if self._use_gpu else "cpu")

    @cached_property
    def _model(self) -> nn.Module:
        return self._assignment.model.build(self._device)

    @cached_property
    def _images(self) -> ImageSource:
        from distributed_autolora.data.images import ImageSource
        from distributed_autolora.data.parquet import read_images

        job = self._assignment
        table = read_images(job.data_folder, "test")
        return ImageSource(table, channels=job.model.channels(), image_size=job.image_size, resized=False)

    def chunk(self, chunk: Chunk) -> tuple[Columns, float]:
        """Returns the outcome of a chunk, row, row_id and label included, and the seconds it took."""
        import numpy as np

        from distributed_autolora.evaluation.chunks import evaluate_chunk

        job, model = self._assignment, self._model
        x, y = self._batch(job.rows[chunk.start : chunk.stop])
        start = time.perf_counter()
        columns = evaluate_chunk(
            model,
            x,
            y,
            threat_model=self._threat_model,
            attacks=job.attacks,
            seed=chunk.seed,
            step_size=job.step_size,
        )
        rows = np.array(job.rows[chunk.start : chunk.stop], dtype=np.int64)
        row_ids = np.array([self._images.table.row_ids[row] for row in rows.tolist()], dtype=object)
        found = {"row": rows, "row_id": row_ids, "label": y.cpu().numpy(), **columns}
        return found, time.perf_counter() - start

    def curve(self, chunk: Chunk) -> dict[float, AccuracyCount]:
        """Returns how many images of a chunk withstand PGD at each epsilon of the curve."""
        from distributed_autolora.evaluation.curve import curve_epsilons, robustness_curve

        x, y = self._batch(self._assignment.rows[chunk.start : chunk.stop])
        epsilons = curve_epsilons(self._threat_model)
        return robustness_curve(self._model, x, y, threat_model=self._threat_model, epsilons=epsilons, seed=chunk.seed)

    def sanity(self, question: SanityQuestion) -> list[dict[str, Any]]:
        """Returns the sanity checks on some test images as JSON values."""
        from dataclasses import asdict

        from distributed_autolora.evaluation.sanity import check_sanity

        x, y = self._batch(question.rows)
        checks = check_sanity(
            self._model,
            x,
            y,
            threat_model=self._threat_model,
            accuracies=question.accuracies,
            seed=question.seed,
            step_size=self._assignment.step_size,
        )
        return [asdict(check) for check in checks]

    def _batch(self, rows: tuple[int, ...]) -> tuple[Any, Any]:
        import torch

        from distributed_autolora.data.augmentation import to_unit_interval

        chosen = torch.tensor(rows, dtype=torch.int64)
        images = to_unit_interval(self._images.images(chosen).to(self._device))
        return images, self._images.table.labels[chosen].to(self._device)


@dataclass
class _Task:
    """Something that a worker is to do, and how often it was lost with its worker."""

    key: Any
    method: str
    argument: Any
    tries: int = 0


class Pool:
    """Workers that are replaced when they are lost; use it as a context, so that none is left behind.

    Args:
        assignment: what every worker needs to know.
        num_workers: actors, one CPU and one thread each.
        use_gpu: one GPU for each.
    """

    def __init__(self, assignment: Assignment, *, num_workers: int, use_gpu: bool) -> None:
        self._assignment = ray.put(assignment)
        self._actor = ray.remote(num_cpus=1, num_gpus=1 if use_gpu else 0)(Judge)
        self._use_gpu = use_gpu
        self._idle = [self._start() for _ in range(num_workers)]
        self._busy: dict[Any, tuple[Any, _Task]] = {}

    def __enter__(self) -> Pool:
        """Returns the pool."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends all workers, busy or not."""
        for actor in [*self._idle, *(actor for actor, _ in self._busy.values())]:
            ray.kill(actor)

    def work_off(self, tasks: list[tuple[Any, str, Any]]) -> Iterator[tuple[Any, Any]]:
        """Yields (key, returned) of every task as it is finished.

        A task whose worker is lost is given to another, at most three times in all.

        Args:
            tasks: (key, method of `Judge`, its argument) in the order in which they are begun.

        Raises:
            UserError: what a worker refused.
            RunFailedError: for a defect, or a task that cost three workers.
        """
        waiting = deque(_Task(*task) for task in tasks)
        while waiting or self._busy:
            while waiting and self._idle:
                actor, task = self._idle.pop(), waiting.popleft()
                self._busy[getattr(actor, task.method).remote(task.argument)] = actor, task
            done, _ = ray.wait(list(self._busy), num_returns=1)
            actor, task = self._busy.pop(done[0])
            try:
                returned = ray.get(done[0])
            except ray.exceptions.RayActorError as error:
                waiting.appendleft(self._lost(actor, task, error))
                continue
            except ray.exceptions.RayTaskError as error:
                self._idle.append(actor)
                raise _for_people(error) from error
            self._idle.append(actor)
            yield task.key, returned

    def _start(self) -> Any:
        return self._actor.remote(self._assignment, self._use_gpu)

    def _lost(self, actor: Any, task: _Task, error: ray.exceptions.RayActorError) -> _Task:
        """Replaces a lost worker and returns what it was working on."""
        ray.kill(actor)
        task.tries += 1
        if task.tries >= _MAX_TRIES:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RunFailedError(
                f"{task.key} was lost with its worker {_MAX_TRIES} times ({reason}): is there enough memory? "
                "Finished chunks are kept; a smaller --chunk-size needs less."
            ) from error
        self._idle.append(self._start())
        return task


def _for_people(error: ray.exceptions.RayTaskError) -> UserError:
    """Returns the user error that a worker raised, or says that it failed."""
    cause = error.cause
    if isinstance(cause, UserError):
        return cause
    what = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    return RunFailedError(f"A worker failed ({type(cause).__name__}: {what}). Finished chunks are kept.")
