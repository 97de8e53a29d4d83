"""Measures standard AutoAttack on one and two worker processes, and against pyautoattack called directly.

    python benchmarks/autoattack.py                          # two to three minutes on two cores
    python benchmarks/autoattack.py --rounds 10              # more test images

The model is the shipped backbone under a linear head fitted to the training images of the shipped task. In every round
one process evaluates two chunks of test images one after the other, two processes evaluate one each, and pyautoattack,
called directly with the same settings and seed, evaluates the first. All must find the same images robust.
"""

import logging
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout has no package "benchmarks"

from benchmarks.timing import BenchmarkFlags, ratio, run_benchmark, table
from benchmarks.worker_pool import WorkerPool
from distributed_autolora.config.recipes import demo
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.data.catalog import embedded_backbone, embedded_folder
from distributed_autolora.data.splits import stratified_subset
from distributed_autolora.errors import UserError
from distributed_autolora.evaluation.attacks import STANDARD_BUDGET, NamedAttack, label, parse, parts_for
from distributed_autolora.evaluation.autoattack import LOGGER, configured
from distributed_autolora.evaluation.chunks import Chunk, cut, evaluate_chunk
from distributed_autolora.training.evaluation import fit_linear_head
from distributed_autolora.training.methods.registry import fresh_classifier
from distributed_autolora.training.task_data import TaskData, open_table

CLASSES = 5
FIRST, SECOND = "first", "second"
ONE, TWO, PLAIN = "1 process, two chunks one after the other", "2 processes, a chunk each", "pyautoattack, one chunk"


@dataclass(frozen=True, kw_only=True)
class Flags(BenchmarkFlags):
    """What to measure."""

    attack: str = "autoattack"
    """AutoAttack ("autoattack") or parts of it, such as "apgd"; always with the standard version's budgets."""
    chunk_size: int = 4
    """Test images of a chunk, evaluated in one batch."""
    rounds: int = 2
    """Rounds of two chunks each."""
    seed: int = 0
    """Seed of the choice of test images and of the attacks."""


class Evaluator:
    """State of a worker process: the model, and the test images `rows` in the order in which chunks count them."""

    def __init__(self, attack: NamedAttack, rows: Tensor) -> None:
        config = demo()
        data = TaskData(config, str(embedded_folder()), torch.device("cpu"))
        self.model = fresh_classifier(config, data.num_classes, str(embedded_backbone())).eval()
        fit_linear_head(self.model, data.plain_batches, data.split.train, config.evaluation.batch_size_per_worker)
        self.attack, self.epsilon = attack, config.threat_model.epsilon
        self.x, self.y = data.test_batch(rows)
        LOGGER.setLevel(logging.ERROR)  # it warns of fewer than ten classes in every call

    def evaluate(self, chunk: Chunk) -> tuple[list[bool], float]:
        """Returns which images of a chunk are robust, as a worker of an evaluation does, and the seconds."""
        x, y, start = self.x[chunk.start : chunk.stop], self.y[chunk.start : chunk.stop], time.perf_counter()
        threat_model = ThreatModel("linf", self.epsilon)
        found = evaluate_chunk(self.model, x, y, threat_model=threat_model, attacks=(self.attack,), seed=chunk.seed)
        return found[f"robust/{self.attack.name}"].tolist(), time.perf_counter() - start

    def evaluate_directly(self, chunk: Chunk) -> tuple[list[bool], float]:
        """As `evaluate`, by one call of pyautoattack with all parts."""
        x, y, start = self.x[chunk.start : chunk.stop], self.y[chunk.start : chunk.stop], time.perf_counter()
        attack: Any = configured(
            self.model,
            parts=parts_for(self.attack, CLASSES),
            threat_model=ThreatModel(epsilon=self.epsilon),
            num_classes=CLASSES,
            seed=chunk.seed,
            budget=STANDARD_BUDGET,
        )
        _, predictions = attack.run_standard_evaluation(x, y, batch_size=len(x))
        return (predictions == y).tolist(), time.perf_counter() - start


def measure(flags: Flags) -> dict[str, Any]:
    """Returns everything that is written."""
    attacks = parse(flags.attack)
    if len(attacks) != 1 or not attacks[0].parts:
        raise UserError(f'"{flags.attack}" is not AutoAttack or one part of it: give --attack autoattack or apgd.')
    labels = open_table(demo(), str(embedded_folder()), "test").labels
    count = 2 * flags.rounds * flags.chunk_size
    if not 0 < count <= len(labels):
        raise UserError(f"--rounds and --chunk-size need {count} test images; there are {len(labels)}.")
    chunks = cut(count, flags.chunk_size, flags.seed)
    make = partial(Evaluator, attacks[0], stratified_subset(labels, count, flags.seed))
    with WorkerPool({FIRST: make, SECOND: make}) as pool:
        seconds, by_chunk, robust = _rounds(pool, list(zip(chunks[::2], chunks[1::2], strict=True)))
    busy = {
        name: [a + b for a, b in zip(by_chunk[name][::2], by_chunk[name][1::2], strict=True)] for name in (ONE, TWO)
    }
    return {
        "attack": label(attacks[0], CLASSES, budget=STANDARD_BUDGET),
        "images": count,
        "chunk_size": flags.chunk_size,
        "robust": sum(map(sum, robust[ONE])),
        "same_outcomes": robust[ONE] == robust[TWO] and robust[ONE][::2] == robust[PLAIN],
        "images_per_second": {name: 2 * flags.chunk_size / statistics.median(seconds[name]) for name in (ONE, TWO)},
        "speedup_of_two": ratio(seconds, ONE, TWO),
        "speedup_of_two_while_busy": 2 * ratio(busy, ONE, TWO),
        "time_against_pyautoattack": ratio({ONE: by_chunk[ONE][::2], PLAIN: by_chunk[PLAIN]}, ONE, PLAIN),
        "seconds_by_round": seconds,
        "seconds_by_chunk": by_chunk,
    }


def _rounds(
    pool: WorkerPool, pairs: Sequence[tuple[Chunk, Chunk]]
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, list[list[bool]]]]:
    """Returns the seconds of every round and of every chunk, and which images of every chunk are robust."""
    seconds: dict[str, list[float]] = {name: [] for name in (ONE, TWO, PLAIN)}
    by_chunk: dict[str, list[float]] = {name: [] for name in seconds}
    robust: dict[str, list[list[bool]]] = {name: [] for name in seconds}
    for a, b in pairs:
        calls: dict[str, list[Callable[[], list[Any]]]] = {
            ONE: [partial(pool.call, [FIRST], Evaluator.evaluate, chunk) for chunk in (a, b)],
            TWO: [partial(pool.map, {FIRST: [a], SECOND: [b]}, Evaluator.evaluate)],
            PLAIN: [partial(pool.call, [FIRST], Evaluator.evaluate_directly, a)],
        }
        for name, own in calls.items():
            start = time.perf_counter()
            found = [outcome for call in own for outcome in call()]
            seconds[name].append(time.perf_counter() - start)
            by_chunk[name] += [taken for _, taken in found]
            robust[name] += [outcome for outcome, _ in found]
    return seconds, by_chunk, robust


def show(result: dict[str, Any]) -> None:
    """Prints the tables."""
    print(f"{result['attack']} on the shipped backbone with a linear head: {result['images']} test images in chunks of")
    print(f"{result['chunk_size']}, {result['robust']} robust\n")
    print(table("", {name: {"images per second": rate} for name, rate in result["images_per_second"].items()}))
    rows = {
        "2 processes, times as fast as 1": "speedup_of_two",
        "  without the time that one process waits for the other": "speedup_of_two_while_busy",
        "1 process, times as long as pyautoattack called directly": "time_against_pyautoattack",
    }
    print(f"\n{table('', {words: {'ratio': result[key]} for words, key in rows.items()})}\n")
    print("All find the same images robust." if result["same_outcomes"] else "They do NOT find the same images.")


if __name__ == "__main__":
    run_benchmark(Flags, __doc__, measure, show)
