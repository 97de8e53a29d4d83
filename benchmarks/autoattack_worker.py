"""The worker process of the AutoAttack benchmark: an `Evaluator`, and pyautoattack called directly."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from distributed_autolora.data.augmentation import to_unit_interval
from distributed_autolora.evaluation.attacks import STANDARD_BUDGET, parts_for
from distributed_autolora.evaluation.autoattack import LOGGER, configured
from distributed_autolora.evaluation.chunks import Chunk
from distributed_autolora.orchestration.evaluations.worker import EvaluationTask, Evaluator


@dataclass(frozen=True)
class Judged:
    """What a process found out about a chunk."""

    natural: int
    """Images classified rightly as they are."""
    robust: tuple[bool, ...]
    """Which images withstood."""
    seconds: float
    """That the attacks took, in the process."""


class Worker:
    """What a worker process holds: an evaluation's evaluator, and model and images to call pyautoattack on."""

    def __init__(self, job: EvaluationTask) -> None:
        self._job, self._evaluator = job, Evaluator(job)
        self._attack, self._classes = job.attacks[0], num_classes(job)
        self._model, self._images = job.model.build(), job.open_images()
        LOGGER.setLevel(logging.ERROR)  # it warns of fewer classes than ten, in every call

    def judge(self, chunk: Chunk) -> Judged:
        """Judges a chunk as a worker of an evaluation does."""
        columns, seconds = self._evaluator.chunk(chunk)
        natural = int((columns["natural_prediction"] == columns["label"]).sum())
        return Judged(natural, tuple(columns[f"robust/{self._attack.name}"].tolist()), seconds)

    def judge_plainly(self, chunk: Chunk) -> Judged:
        """Judges a chunk by one call of pyautoattack with all parts."""
        rows = torch.tensor(self._job.rows[chunk.start : chunk.stop])
        x, y = to_unit_interval(self._images.images(rows)), self._images.table.labels[rows]
        start = time.perf_counter()
        attack: Any = configured(
            self._model,
            parts=parts_for(self._attack, self._classes),
            epsilon=self._job.epsilon,
            num_classes=self._classes,
            seed=chunk.seed,
            budget=STANDARD_BUDGET,
        )
        _, predictions = attack.run_standard_evaluation(x, y, batch_size=len(x))
        seconds = time.perf_counter() - start
        with torch.no_grad():
            natural = int((self._model(x).argmax(1) == y).sum())
        return Judged(natural, tuple((predictions == y).tolist()), seconds)


_worker: list[Worker] = []
"""The worker that this process is."""


def worker_process(job: EvaluationTask) -> ProcessPoolExecutor:
    """Returns one worker process of one thread, not yet started."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before the new process imports torch
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, context, initializer=_start, initargs=(job,))


def _start(job: EvaluationTask) -> None:
    torch.set_num_threads(1)
    _worker.append(Worker(job))


def is_ready() -> bool:
    """Tells that the worker process has started."""
    return bool(_worker)


def judge(chunk: Chunk) -> Judged:
    """Judges a chunk in a worker process as a worker of an evaluation does."""
    return _worker[0].judge(chunk)


def judge_plainly(chunk: Chunk) -> Judged:
    """Judges a chunk in a worker process by one call of pyautoattack with all parts."""
    return _worker[0].judge_plainly(chunk)


def num_classes(job: EvaluationTask) -> int:
    """Returns the number of outputs of the model that is judged."""
    return job.model.description.num_classes
