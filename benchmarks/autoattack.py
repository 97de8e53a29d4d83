"""Measures standard AutoAttack on one and two worker processes, and against pyautoattack called directly.

    python benchmarks/autoattack.py                          # two to three minutes on two cores
    python benchmarks/autoattack.py --rounds 10              # more test images
    python benchmarks/autoattack.py --model RUN/model.safetensors

The model is the shipped backbone under a linear head fitted to the training images of the shipped task, or a file's.
A process is what a worker of an evaluation is, without Ray around it, and has one thread. In every round one process
judges two chunks of test images, two processes judge a chunk each, and pyautoattack, called directly with the same
settings and seeds, judges the same two: all have to find the same. Chunks are small, so that it does not take an hour;
larger ones take less time an image. Prints a table and writes the same as JSON.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout has no package "benchmarks"

from benchmarks.timing import ratio, table, write
from distributed_autolora.data.augmentation import to_unit_interval
from distributed_autolora.data.splits import stratified_subset
from distributed_autolora.data.storage import data_digest
from distributed_autolora.errors import UserError
from distributed_autolora.evaluation.attacks import STANDARD_BUDGET, label, parse, parts_for
from distributed_autolora.evaluation.autoattack import LOGGER, configured
from distributed_autolora.evaluation.chunks import Chunk, cut
from distributed_autolora.models import read_weights
from distributed_autolora.models.portable import NetworkDescription, PortableModel, file_description
from distributed_autolora.orchestration.evaluation_worker import Assignment, Judge, open_test_split, table_digest
from distributed_autolora.orchestration.preflight import find_inputs
from distributed_autolora.recipes import demo
from distributed_autolora.training.evaluation import fit_linear_head
from distributed_autolora.training.methods import fresh_classifier
from distributed_autolora.training.task_data import TaskData

ONE, TWO, PLAIN = "one process", "two processes", "pyautoattack"
_WORDS = {
    ONE: "1 process, two chunks one after the other",
    TWO: "2 processes, a chunk each",
    PLAIN: "1 process, pyautoattack called directly",
}


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What to measure."""

    attack: str = "autoattack"
    """AutoAttack ("autoattack") or parts of it, such as "apgd"; always with the standard version's budgets."""
    chunk_size: int = 4
    """Test images of a chunk, judged in one batch."""
    rounds: int = 2
    """Rounds of two chunks each."""
    model: Path | None = None
    """A run's model.safetensors, trained on the shipped task; None: the shipped backbone under a fitted linear head."""
    seed: int = 0
    """Seed of the choice of test images and of the attacks."""
    output: Path = Path("autoattack.json")
    """File to write the numbers to."""


@dataclass(frozen=True)
class Judged:
    """What a process found out about a chunk."""

    natural: int
    """Images classified rightly as they are."""
    robust: tuple[bool, ...]
    """Which images withstood."""
    seconds: float
    """That the attacks took, in the process."""


class _Worker:
    """What a worker process holds: an evaluation's judge, and model and images to call pyautoattack on."""

    def __init__(self, job: Assignment) -> None:
        self._job, self._judge = job, Judge(job, use_gpu=False)
        self._attack, self._classes = job.attacks[0], _num_classes(job)
        self._model, self._images = job.model.build(), job.open_images()
        self.judge(Chunk(-1, 0, 0, 0))  # the judge reads model and images with its first task
        LOGGER.setLevel(logging.ERROR)  # it warns of fewer classes than ten, in every call

    def judge(self, chunk: Chunk) -> Judged:
        """Judges a chunk as a worker of an evaluation does."""
        columns, seconds = self._judge.chunk(chunk)
        natural = int((columns["natural_prediction"] == columns["label"]).sum())
        return Judged(natural, tuple(columns[f"robust/{self._attack.name}"].tolist()), seconds)

    def judge_plainly(self, chunk: Chunk) -> Judged:
        """Judges a chunk by one call of pyautoattack with all parts."""
        rows = torch.tensor(self._job.rows[chunk.start : chunk.stop])
        x, y = to_unit_interval(self._images.images(rows)), self._images.table.labels[rows]
        start = time.perf_counter()
        attack = configured(
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


_worker: list[_Worker] = []
"""The worker that this process is."""


def main() -> None:
    """Measures, prints and writes."""
    flags = tyro.cli(Flags, description=__doc__)
    torch.set_num_threads(1)
    result = measure(flags)
    show(result)
    write(result, flags.output)


def measure(flags: Flags) -> dict[str, Any]:
    """Returns everything that is written.

    Raises:
        UserError: for an attack without parts of AutoAttack, or a model that cannot be read.
    """
    job = _assignment(flags)
    chunks = cut(len(job.rows), flags.chunk_size, flags.seed)
    with _process(job) as first, _process(job) as second:
        for worker in (first, second):
            worker.submit(_is_ready).result()
        seconds, found = _rounds(first, second, list(zip(chunks[::2], chunks[1::2], strict=True)))
    judged = [found[ONE][chunk.index] for chunk in chunks]
    by_chunk = {name: [found[name][chunk.index].seconds for chunk in chunks] for name in found}
    busy = {name: [sum(pair) for pair in zip(taken[::2], taken[1::2], strict=True)] for name, taken in by_chunk.items()}
    return {
        "attack": label(job.attacks[0], _num_classes(job), budget=STANDARD_BUDGET),
        "model": "shipped backbone, linear head" if flags.model is None else str(flags.model),
        "images": len(job.rows),
        "chunk_size": flags.chunk_size,
        "rounds": flags.rounds,
        "natural_correct": sum(one.natural for one in judged),
        "robust": sum(sum(one.robust) for one in judged),
        "same_outcomes": all(
            [one.robust for one in judged] == [found[name][chunk.index].robust for chunk in chunks] for name in _WORDS
        ),
        "images_per_second": {
            name: 2 * flags.chunk_size / statistics.median(values) for name, values in seconds.items()
        },
        "speedup_of_two": ratio(seconds, ONE, TWO),
        "speedup_of_two_if_chunks_took_the_same_time": 2 * ratio(busy, ONE, TWO),
        "time_against_pyautoattack": ratio(seconds, ONE, PLAIN),
        "seconds_by_round": seconds,
        "seconds_by_chunk": by_chunk,
    }


def show(result: dict[str, Any]) -> None:
    """Prints the table."""
    print(f"{result['attack']} on {result['model']}: {result['images']} test images in chunks of", end=" ")
    print(f"{result['chunk_size']}, {result['natural_correct']} right as they are, {result['robust']} withstand\n")
    rates = result["images_per_second"]
    print(table(["", "images/s"], [[words, f"{rates[name]:.3f}"] for name, words in _WORDS.items()]))
    rows = [
        ["2 processes, times as fast as 1", f"{result['speedup_of_two']:.2f}"],
        [
            "  if both chunks of a round took the same time",
            f"{result['speedup_of_two_if_chunks_took_the_same_time']:.2f}",
        ],
        ["1 process, times as long as pyautoattack", f"{result['time_against_pyautoattack']:.2f}"],
    ]
    print(f"\n{table(['', 'ratio'], rows)}\n")
    print("All three find the same images robust." if result["same_outcomes"] else "They do NOT find the same images.")


def _process(job: Assignment) -> ProcessPoolExecutor:
    """Returns one worker process of one thread, not yet started."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before the new process imports torch
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, context, initializer=_start, initargs=(job,))


def _rounds(
    first: ProcessPoolExecutor, second: ProcessPoolExecutor, pairs: Sequence[tuple[Chunk, Chunk]]
) -> tuple[dict[str, list[float]], dict[str, dict[int, Judged]]]:
    """Returns the seconds of each variant by round, and what it found by chunk."""

    def one(function: Callable[[Chunk], Judged], pair: tuple[Chunk, Chunk]) -> list[Judged]:
        return [first.submit(function, chunk).result() for chunk in pair]

    def two(pair: tuple[Chunk, Chunk]) -> list[Judged]:
        futures = [worker.submit(_judge, chunk) for worker, chunk in zip((first, second), pair, strict=True)]
        return [future.result() for future in futures]

    variants = {ONE: lambda pair: one(_judge, pair), TWO: two, PLAIN: lambda pair: one(_judge_plainly, pair)}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    found: dict[str, dict[int, Judged]] = {name: {} for name in variants}
    for pair in pairs:
        for name, run in variants.items():
            start = time.perf_counter()
            judged = run(pair)
            seconds[name].append(time.perf_counter() - start)
            found[name] |= {chunk.index: one for chunk, one in zip(pair, judged, strict=True)}
    return seconds, found


def _start(job: Assignment) -> None:
    torch.set_num_threads(1)
    _worker.append(_Worker(job))


def _is_ready() -> bool:
    return bool(_worker)


def _judge(chunk: Chunk) -> Judged:
    return _worker[0].judge(chunk)


def _judge_plainly(chunk: Chunk) -> Judged:
    return _worker[0].judge_plainly(chunk)


def _assignment(flags: Flags) -> Assignment:
    """Returns what a worker is told: the model, and which test images in which order."""
    config, inputs = find_inputs(demo())
    attacks = parse(flags.attack)
    if len(attacks) != 1 or not attacks[0].parts:
        raise UserError(f'"{flags.attack}" is not AutoAttack or one part of it: give --attack autoattack or apgd.')
    digest = data_digest(inputs.data_folder)
    test = open_test_split(inputs.data_folder, digest, None, None)
    count = 2 * flags.rounds * flags.chunk_size
    if not 0 < count <= len(test):
        raise UserError(
            f"{flags.rounds} rounds of two chunks of {flags.chunk_size}: there are {len(test)} test images."
        )
    chosen = stratified_subset(test.labels, count, flags.seed)
    return Assignment(
        model=_shipped_model() if flags.model is None else _model_of_file(flags.model),
        data_folder=inputs.data_folder,
        data_digest=digest,
        table_digest=table_digest(test),
        rows=tuple(chosen.tolist()),
        image_size=None,
        cache=None,
        epsilon=config.threat_model.epsilon,
        attacks=attacks,
        step_size=None,
    )


def _shipped_model() -> PortableModel:
    config, inputs = find_inputs(demo())
    data = TaskData(config, inputs.data_folder, torch.device("cpu"))
    classifier = fresh_classifier(config, data.num_classes, inputs.weights)
    fit_linear_head(classifier, data.plain_batch, data.split.train, config.evaluation.batch_size_per_worker)
    model = config.model
    description = NetworkDescription(
        backbone=model.backbone, num_classes=data.num_classes, mean=tuple(model.mean), std=tuple(model.std)
    )
    return PortableModel(description, classifier.backbone.state_dict())


def _model_of_file(path: Path) -> PortableModel:
    description = file_description(path)
    if description is None:
        raise UserError(f"{path} does not say which network it belongs to: give a run's model.safetensors.")
    return PortableModel(description, read_weights(path))


def _num_classes(job: Assignment) -> int:
    assert job.model.description is not None
    return job.model.description.num_classes


if __name__ == "__main__":
    main()
