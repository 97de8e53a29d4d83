"""Measures standard AutoAttack on one and two worker processes, and against pyautoattack called directly.

    python benchmarks/autoattack.py                          # two to three minutes on two cores
    python benchmarks/autoattack.py --rounds 10              # more test images
    python benchmarks/autoattack.py --model RUN/model.safetensors

The model is the shipped backbone under a linear head fitted to the training images of the shipped task, or a file's.
A process is what a worker of an evaluation is, without Ray around it, and has one thread. In every round one process
judges two chunks of test images one after the other, two processes judge one of them each, and pyautoattack, called
directly with the same settings and seed, judges the first: all have to find the same. Chunks are small, so that this
does not take an hour; larger ones take less time an image. Prints a table and writes the same as JSON.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout has no package "benchmarks"

from benchmarks.autoattack_worker import Judged, is_ready, judge, judge_plainly, num_classes, worker_process
from benchmarks.timing import ratio, table, write
from distributed_autolora.config.recipes import demo
from distributed_autolora.data.parquet.locations import data_digest
from distributed_autolora.data.splits import stratified_subset
from distributed_autolora.errors import UserError
from distributed_autolora.evaluation.attacks import STANDARD_BUDGET, label, parse
from distributed_autolora.evaluation.chunks import Chunk, cut
from distributed_autolora.models.portable import NetworkDescription, PortableModel, read_model
from distributed_autolora.orchestration.evaluations.worker import EvaluationTask, open_test_split, table_digest
from distributed_autolora.orchestration.runs.preflight import find_inputs
from distributed_autolora.training.evaluation import fit_linear_head
from distributed_autolora.training.methods.registry import fresh_classifier
from distributed_autolora.training.task_data import TaskData

Pair = tuple[Chunk, Chunk]
ONE, TWO, PLAIN = "one process", "two processes", "pyautoattack"
_WORDS = {
    ONE: "1 process, two chunks one after the other",
    TWO: "2 processes, a chunk each",
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
    job = _task(flags)
    chunks = cut(len(job.rows), flags.chunk_size, flags.seed)
    with worker_process(job) as first, worker_process(job) as second:
        for ready in [worker.submit(is_ready) for worker in (first, second)]:
            ready.result()
        seconds, found = _rounds(first, second, list(zip(chunks[::2], chunks[1::2], strict=True)))
    judged = [found[ONE][chunk.index] for chunk in chunks]
    return {
        "attack": label(job.attacks[0], num_classes(job), budget=STANDARD_BUDGET),
        "model": "shipped backbone, linear head" if flags.model is None else str(flags.model),
        "images": len(job.rows),
        "chunk_size": flags.chunk_size,
        "rounds": flags.rounds,
        "natural_correct": sum(one.natural for one in judged),
        "robust": sum(sum(one.robust) for one in judged),
        "same_outcomes": all(
            (one.natural, one.robust) == (found[ONE][index].natural, found[ONE][index].robust)
            for own in found.values()
            for index, one in own.items()
        ),
        "images_per_second": {name: 2 * flags.chunk_size / statistics.median(seconds[name]) for name in (ONE, TWO)},
        **_ratios(seconds, found),
        "seconds_by_round": {name: seconds[name] for name in (ONE, TWO)},
        "seconds_by_chunk": {name: {index: one.seconds for index, one in own.items()} for name, own in found.items()},
    }


def show(result: dict[str, Any]) -> None:
    """Prints the table."""
    print(f"{result['attack']} on {result['model']}: {result['images']} test images in chunks of", end=" ")
    print(f"{result['chunk_size']}, {result['natural_correct']} right as they are, {result['robust']} withstand\n")
    rates = result["images_per_second"]
    print(table(["", "images/s"], [[_WORDS[name], f"{rate:.3f}"] for name, rate in rates.items()]))
    rows = [
        ["2 processes, times as fast as 1", f"{result['speedup_of_two']:.2f}"],
        ["  with the time that a process waits for the other left out", f"{result['speedup_of_two_while_busy']:.2f}"],
        ["1 process, times as long as pyautoattack called directly", f"{result['time_against_pyautoattack']:.2f}"],
    ]
    print(f"\n{table(['', 'ratio'], rows)}\n")
    print("All find the same images robust." if result["same_outcomes"] else "They do NOT find the same images.")


def _rounds(
    first: ProcessPoolExecutor, second: ProcessPoolExecutor, pairs: Sequence[Pair]
) -> tuple[dict[str, list[float]], dict[str, dict[int, Judged]]]:
    """Returns the seconds of each variant by round, and what it found by chunk."""

    def one(pair: Pair) -> list[Judged]:
        return [first.submit(judge, chunk).result() for chunk in pair]

    def two(pair: Pair) -> list[Judged]:
        futures = [worker.submit(judge, chunk) for worker, chunk in zip((first, second), pair, strict=True)]
        return [future.result() for future in futures]

    def plain(pair: Pair) -> list[Judged]:
        return [first.submit(judge_plainly, pair[0]).result()]

    variants = {ONE: one, TWO: two, PLAIN: plain}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    found: dict[str, dict[int, Judged]] = {name: {} for name in variants}
    for pair in pairs:
        for name, run in variants.items():
            start = time.perf_counter()
            judged = run(pair)
            seconds[name].append(time.perf_counter() - start)
            found[name] |= {chunk.index: own for chunk, own in zip(pair, judged, strict=False)}
    return seconds, found


def _ratios(seconds: dict[str, list[float]], found: dict[str, dict[int, Judged]]) -> dict[str, float]:
    taken = {name: [own[index].seconds for index in sorted(own)] for name, own in found.items()}
    busy = {name: [a + b for a, b in zip(taken[name][::2], taken[name][1::2], strict=True)] for name in (ONE, TWO)}
    return {
        "speedup_of_two": ratio(seconds, ONE, TWO),
        "speedup_of_two_while_busy": 2 * ratio(busy, ONE, TWO),
        "time_against_pyautoattack": ratio({ONE: taken[ONE][::2], PLAIN: taken[PLAIN]}, ONE, PLAIN),
    }


def _task(flags: Flags) -> EvaluationTask:
    """Returns what a worker is given: the model, and which test images in which order."""
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
    return EvaluationTask(
        model=_shipped_model() if flags.model is None else read_model(flags.model),
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
    description = NetworkDescription.of(config.model, data.num_classes)
    return PortableModel(description, classifier.backbone.state_dict())


if __name__ == "__main__":
    main()
