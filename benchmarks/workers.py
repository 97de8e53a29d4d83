"""Measures the speed-up of a second training process on this machine, and what keeps it below two.

    python benchmarks/workers.py                 # under three minutes on two cores
    python benchmarks/workers.py --rounds 30     # on a machine whose speed changes
    python benchmarks/workers.py --batch-norm-shards 2

Processes of one thread train the demo's network on the demo's images. In every round each variant takes some steps;
a speed-up is the median over the rounds. With shards, a process of its own has the half of them that a worker has.
"""

import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout has no package "benchmarks"

from benchmarks.collectives import PHASES, Collective, Turn, profiled_steps, seconds_alone, start_worker, take_steps
from benchmarks.timing import BenchmarkFlags, ratio, run_benchmark, table
from benchmarks.worker_pool import WorkerPool
from distributed_autolora.config import ExperimentConfig
from distributed_autolora.config.recipes import demo
from distributed_autolora.hardware import cpu_precision
from distributed_autolora.orchestration.runs.names import with_precision

ALONE, HALVES, GROUP = "alone", ("half", "other half"), ("first", "second")
ONE, TWO, HALF, PAIR = "one worker", "two workers", "half a batch", "two apart"
_WORDS = {
    ONE: "1 worker, whole batches",
    TWO: "2 workers, half of each batch each",
    HALF: "1 process, half of each batch",
    PAIR: "2 processes that share nothing, half each",
}
_RATIOS = (
    (TWO, ONE, "2 workers against 1"),
    (HALF, ONE, "  half a batch against a whole one"),
    (PAIR, HALF, "  x a second process beside the first, nothing shared: what the machine gives"),
    (TWO, PAIR, "  x 2 workers against 2 processes that share nothing: collectives, waiting, batch norm"),
)
_PROFILED_STEPS = 2
_VERBS = {
    "all_gather": "gathers of batch norm's sums",
    "all_reduce": "reductions of gradients and of running statistics",
}


@dataclass(frozen=True, kw_only=True)
class Flags(BenchmarkFlags):
    """What to measure."""

    batch: int = 64
    """Images of a global batch."""
    steps: int = 6
    """Steps of a variant in a round."""
    rounds: int = 10
    """Rounds; one more before them is not counted."""
    batch_norm_shards: int | None = None
    """Shards that batch norm takes its statistics over, an even number; None: the global batch."""


def measure(flags: Flags) -> dict[str, Any]:
    """Returns everything that is written."""
    config = with_precision(demo(), cpu_precision())
    config = replace(config, optimization=replace(config.optimization, global_batch_size=flags.batch))
    shards = flags.batch_norm_shards
    whole, half = with_shards(config, shards), with_shards(config, shards and shards // len(GROUP))
    members: dict[str, tuple[ExperimentConfig, int | None]] = {
        ALONE: (whole, None),
        **dict.fromkeys(HALVES, (half, None)),
        **{name: (whole, rank) for rank, name in enumerate(GROUP)},
    }
    with tempfile.TemporaryDirectory() as folder:
        store = f"{folder}/store"
        states = {name: partial(start_worker, *own, len(GROUP), store) for name, own in members.items()}
        with WorkerPool(states) as pool:
            turns = [_round(pool, flags.steps) for _ in range(flags.rounds + 1)][1:]
            profiles: list[tuple[float, list[Collective]]] = pool.call(GROUP, profiled_steps, _PROFILED_STEPS)
            of_one_step = profiles[0][1][: len(profiles[0][1]) // _PROFILED_STEPS]
            alone = max(pool.call(GROUP, seconds_alone, of_one_step, 20))
    seconds = {name: [seconds_a_batch(name, turn[name]) / flags.steps for turn in turns] for name in _WORDS}
    return {
        "setting": {"method": config.method.name, "backbone": config.model.backbone, **asdict(config.compute)},
        **{"batch": flags.batch, "steps": flags.steps, "rounds": flags.rounds, "batch_norm_shards": shards},
        "variants": {
            name: {"images_per_second": flags.batch / statistics.median(seconds[name])}
            | _milliseconds([turn[name] for turn in turns], flags.steps)
            for name in _WORDS
        },
        "speedups": {f"{name} / {base}": ratio(seconds, base, name) for name, base, _ in _RATIOS},
        "seconds_a_global_batch_by_round": seconds,
        "collectives": _describe([collective for _, own in profiles for collective in own]),
        "collectives_share_of_profiled_steps": statistics.mean(
            sum(collective.seconds for collective in own) / seconds for seconds, own in profiles
        ),
        "collectives_alone_ms": 1000 * alone,
    }


def with_shards(config: ExperimentConfig, shards: int | None) -> ExperimentConfig:
    """Returns the config with batch norm over that many shards; None: over the global batch."""
    optimization = replace(
        config.optimization, batch_norm="shards" if shards else "global", batch_norm_shards=shards or None
    )
    return replace(config, optimization=optimization)


def show(result: dict[str, Any]) -> None:
    """Prints the tables."""
    over = f"{result['batch_norm_shards']} shards" if result["batch_norm_shards"] else "the global batch"
    setting = ", ".join(map(str, result["setting"].values()))
    print(f"{setting}; batch norm over {over}; {result['rounds']} rounds\n")
    print(table("variant", {words: result["variants"][name] for name, words in _WORDS.items()}))
    speedups = {words: {"times as fast": result["speedups"][f"{name} / {base}"]} for name, base, words in _RATIOS}
    print(f"\n{table('', speedups)}\n")
    print(table("collectives of a step in a worker", result["collectives"]))
    print(f"They take {100 * result['collectives_share_of_profiled_steps']:.0f} % of the profiled step.")
    print(f"Back to back, with no computation between them: {result['collectives_alone_ms']:.1f} ms.")


def seconds_a_batch(name: str, turns: Sequence[Turn]) -> float:
    """Returns the seconds in which a variant trains on as many images as that many full global batches have."""
    if name == PAIR:  # their rates add
        return 2 / sum(1 / turn.seconds for turn in turns)
    return (2 if name == HALF else 1) * max(turn.seconds for turn in turns)


def _round(pool: WorkerPool, steps: int) -> dict[str, list[Turn]]:
    """Times each variant in turn; the other processes wait."""
    return {
        ONE: pool.call([ALONE], take_steps, steps),
        TWO: pool.call(GROUP, take_steps, steps),
        HALF: pool.call(HALVES[:1], take_steps, steps, True),
        PAIR: pool.call(HALVES, take_steps, steps, True),
    }


def _milliseconds(rounds: Sequence[Sequence[Turn]], steps: int) -> dict[str, float]:
    """Returns the median over the rounds of a step's milliseconds by phase, the mean of the processes.

    A worker that finishes its attack first waits in the step.
    """
    return {
        f"{phase}_ms": 1000
        / steps
        * statistics.median(statistics.mean(turn.phases[phase] for turn in turns) for turns in rounds)
        for phase in PHASES
    }


def _describe(collectives: Sequence[Collective]) -> dict[str, dict[str, float]]:
    """Returns number, bytes and milliseconds of a step's collectives in one worker, by kind and by phase."""
    verbs = sorted({collective.verb for collective in collectives})
    groups = {_VERBS.get(verb, verb): [c for c in collectives if c.verb == verb] for verb in verbs}
    groups |= {f"in the {phase}": [c for c in collectives if c.phase == phase] for phase in ("attack", "step")}
    count = len(GROUP) * _PROFILED_STEPS
    return {
        name: {
            "number": len(own) / count,
            "bytes": 4 * sum(c.numbers for c in own) / count,  # all are float32
            "milliseconds": 1000 * sum(c.seconds for c in own) / count,
        }
        for name, own in groups.items()
    }


if __name__ == "__main__":
    run_benchmark(Flags, __doc__, measure, show)
