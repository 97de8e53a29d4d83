"""Measures what a second training process on this machine brings, and what stands between it and twice the speed.

    python benchmarks/workers.py                 # under three minutes on two cores
    python benchmarks/workers.py --rounds 30     # on a machine whose speed changes

Processes of one thread train the demo's network on the demo's images. In every round each variant takes some steps;
a speed-up is the median of the rounds' own. It prints tables and writes the same as JSON.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout has no package "benchmarks"

from benchmarks.collectives import PHASES, Traffic, of_one_step, profiled_traffic, seconds_alone
from benchmarks.crew import Crew, Turn, take_steps
from benchmarks.timing import ratio, table, write
from distributed_autolora.config import ComputeConfig, ExperimentConfig, Precision
from distributed_autolora.config.recipes import demo
from distributed_autolora.hardware import cpu_precision
from distributed_autolora.orchestration.runs.names import with_precision

ALONE, OTHER, GROUP = "alone", "other", ("first", "second")
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
    (TWO, PAIR, "  x collectives, waiting, batch norm over both"),
)
_PROFILED_STEPS = 2
_VERBS = {"all_gather": "gathers of batch norm's sums", "all_reduce": "reductions of gradients"}


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What to measure."""

    batch: int = 64
    """Images of a global batch."""
    steps: int = 6
    """Steps of a variant in a round."""
    rounds: int = 10
    """Rounds; one more before them is not counted."""
    attack_precision: Precision = "auto"
    """Format of the attack network; auto: bfloat16 where the CPU computes it natively."""
    train_precision: Precision = "auto"
    """Format of the training step's matrix products; auto: as above."""
    output: Path = Path("workers.json")
    """File to write the numbers to."""


def main() -> None:
    """Measures, prints and writes."""
    flags = tyro.cli(Flags, description=__doc__)
    torch.set_num_threads(1)
    result = measure(flags)
    show(result)
    write(result, flags.output)


def measure(flags: Flags) -> dict[str, Any]:
    """Returns everything that is written."""
    config = _config(flags)
    with Crew(config, (ALONE, OTHER), GROUP) as crew:
        turns = [_round(crew, flags.steps) for _ in range(flags.rounds + 1)][1:]
        traffic: list[Traffic] = crew.ask(GROUP, profiled_traffic, _PROFILED_STEPS)
        sent = of_one_step(traffic[0].collectives, _PROFILED_STEPS)
        alone = max(crew.ask(GROUP, seconds_alone, sent, 20))
    seconds = {name: [seconds_a_batch(name, turn[name]) / flags.steps for turn in turns] for name in _WORDS}
    return {
        "recipe": config.recipe,
        "method": config.method.name,
        "backbone": config.model.backbone,
        **asdict(config.compute),
        **{"batch": flags.batch, "steps": flags.steps, "rounds": flags.rounds},
        "images_per_second": {name: flags.batch / statistics.median(seconds[name]) for name in _WORDS},
        "milliseconds_a_step": {name: _milliseconds([turn[name] for turn in turns], flags.steps) for name in _WORDS},
        "speedups": {f"{name} / {base}": ratio(seconds, base, name) for name, base, _ in _RATIOS},
        "speedup_by_phase": {phase: _phase_speedup(turns, phase) for phase in ("attack", "step")},
        "seconds_a_global_batch_by_round": seconds,
        "collectives": _describe(traffic, alone),
    }


def show(result: dict[str, Any]) -> None:
    """Prints the tables."""
    formats = f"{result['attack_precision']} attack, {result['train_precision']} step"
    print(f"{result['method']}, {result['backbone']}, {formats}, {result['rounds']} rounds\n")
    milliseconds, rates = result["milliseconds_a_step"], result["images_per_second"]
    rows = [
        [words, f"{rates[name]:.0f}", *[f"{milliseconds[name][phase]:.0f}" for phase in PHASES]]
        for name, words in _WORDS.items()
    ]
    print(table(["", "images/s", *[f"ms {phase}" for phase in PHASES]], rows))
    print()
    speedups = [[words, f"{result['speedups'][f'{name} / {base}']:.2f}"] for name, base, words in _RATIOS]
    by_phase = [[f"2 workers against 1, {phase}", f"{x:.2f}"] for phase, x in result["speedup_by_phase"].items()]
    print(table(["", "times as fast"], [*speedups, *by_phase]))
    print()
    collectives = result["collectives"]
    rows = [
        [what, f"{found['number']:g}", f"{found['bytes']:,.0f}", f"{found['milliseconds']:.1f}"]
        for what, found in [*collectives["by_kind"].items(), *collectives["by_phase"].items()]
    ]
    print(table(["collectives of a step in a worker", "number", "bytes", "ms"], rows))
    print(f"They take {100 * collectives['share_of_the_profiled_step']:.0f} % of the profiled step.")
    print(f"One after another, with nothing between them: {collectives['milliseconds_alone']:.1f} ms.")


def seconds_a_batch(name: str, turns: Sequence[Turn]) -> float:
    """Returns the seconds in which a variant trains on as many images as its number of steps of whole batches has.

    Args:
        name: of the variant.
        turns: what the steps took, by process.
    """
    if name == PAIR:  # their rates add
        return 2 / sum(1 / turn.seconds for turn in turns)
    return (2 if name == HALF else 1) * max(turn.seconds for turn in turns)


def _config(flags: Flags) -> ExperimentConfig:
    config = demo()
    compute = ComputeConfig(attack_precision=flags.attack_precision, train_precision=flags.train_precision)
    optimization = replace(config.optimization, global_batch_size=flags.batch)
    return with_precision(replace(config, compute=compute, optimization=optimization), cpu_precision())


def _round(crew: Crew, steps: int) -> dict[str, list[Turn]]:
    """Lets each variant take its turn; the others wait."""
    return {
        ONE: crew.ask([ALONE], take_steps, steps),
        TWO: crew.ask(GROUP, take_steps, steps),
        HALF: crew.ask([ALONE], take_steps, steps, True),
        PAIR: crew.ask([ALONE, OTHER], take_steps, steps, True),
    }


def _milliseconds(rounds: Sequence[Sequence[Turn]], steps: int) -> dict[str, float]:
    """Returns the median over the rounds of a step's milliseconds by phase, the mean of the processes."""
    return {
        phase: 1000 / steps * statistics.median(_phase_seconds(turns, phase) for turns in rounds) for phase in PHASES
    }


def _phase_seconds(turns: Sequence[Turn], phase: str) -> float:
    return statistics.mean(turn.phases[phase] for turn in turns)


def _phase_speedup(rounds: Sequence[dict[str, list[Turn]]], phase: str) -> float:
    """Returns the speed-up of a phase. Who is done with an attack first waits for the other in the step."""
    return statistics.median(_phase_seconds(turn[ONE], phase) / _phase_seconds(turn[TWO], phase) for turn in rounds)


def _describe(traffic: Sequence[Traffic], alone: float) -> dict[str, Any]:
    """Returns the first worker's collectives; times are the mean of all workers."""
    verbs = {c.verb for c in traffic[0].collectives}
    kinds = {_VERBS[verb]: _mean([own.of(verb=verb) for own in traffic]) for verb in _VERBS}
    others = {verb: _mean([own.of(verb=verb) for own in traffic]) for verb in sorted(verbs - set(_VERBS))}
    phases = {f"in the {phase}": _mean([own.of(phase=phase) for own in traffic]) for phase in ("attack", "step")}
    share = [sum(c.seconds for c in own.collectives) / own.seconds for own in traffic]
    return {
        "by_kind": {**kinds, **others},
        "by_phase": phases,
        "profiled_step_milliseconds": 1000 * statistics.mean(own.seconds / own.steps for own in traffic),
        "share_of_the_profiled_step": statistics.mean(share),
        "milliseconds_alone": 1000 * alone,
    }


def _mean(found: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.mean(one[key] for one in found) for key in found[0]}


if __name__ == "__main__":
    main()
