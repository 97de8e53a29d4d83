"""Counts the collectives of training steps, from a profile, and times them."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.crew import take_steps
from distributed_autolora.training.epoch import PhaseSeconds
from distributed_autolora.training.trainer import Trainer

PHASES = ("data", "attack", "step")
_NUMBER_BYTES = 4
"""Everything that is sent in a step is float32."""


@dataclass(frozen=True)
class Collective:
    """One collective of a step.

    Attributes:
        phase: of the step.
        verb: "all_gather" or "all_reduce", or another of torch.distributed's.
        numbers: elements that this worker handed in.
        seconds: from its call until the caller does something else.
    """

    phase: str
    verb: str
    numbers: int
    seconds: float


@dataclass(frozen=True)
class Traffic:
    """The collectives of some steps in one worker, and what the profiled steps took."""

    steps: int
    seconds: float
    collectives: list[Collective] = field(default_factory=list)

    def of(self, *, phase: str | None = None, verb: str | None = None) -> dict[str, float]:
        """Returns number, bytes and milliseconds a step of one phase's or one verb's collectives."""
        chosen = [c for c in self.collectives if phase in (None, c.phase) and verb in (None, c.verb)]
        return {
            "number": len(chosen) / self.steps,
            "bytes": _NUMBER_BYTES * sum(c.numbers for c in chosen) / self.steps,
            "milliseconds": 1000 * sum(c.seconds for c in chosen) / self.steps,
        }


class _MarkedPhases(PhaseSeconds):
    """Seconds by phase, which a profile shows as ranges, too."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        with super().phase(name), record_function(name):
            yield


def profiled_traffic(trainer: Trainer, steps: int) -> Traffic:
    """Takes steps under the profiler and returns their collectives."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        turn = take_steps(trainer, steps, timer=_MarkedPhases())
    events = profiled.events() or []
    ranges = [(event.time_range, event.name) for event in events if event.name in PHASES]
    callers = {event.thread for event in events if event.name in PHASES}
    begun = sorted(event.time_range.start for event in events if event.thread in callers)
    found = []
    for event in events:
        if event.name.startswith("gloo:"):
            span = event.time_range
            phase = next((name for own, name in ranges if own.start <= span.start <= own.end), "none")
            numbers = sum(prod(shape) for shape in event.input_shapes if shape)
            # The caller goes on some time after gloo is done: it must wake up first.
            goes_on = begun[min(bisect_left(begun, span.end), len(begun) - 1)]
            found.append(Collective(phase, event.name.removeprefix("gloo:"), numbers, (goes_on - span.start) / 1e6))
    return Traffic(steps, turn.seconds, found)


def seconds_alone(_trainer: Trainer, sent: Sequence[tuple[str, int]], rounds: int) -> float:
    """Returns the seconds that a step's collectives take one after another, with nothing computed in between."""
    tensors = [(verb, torch.zeros(numbers)) for verb, numbers in sent]
    start = time.perf_counter()
    for _ in range(rounds):
        for verb, own in tensors:
            if verb == "all_gather":
                dist.all_gather([torch.empty_like(own) for _ in range(dist.get_world_size())], own)
            else:
                dist.all_reduce(own)
    return (time.perf_counter() - start) / rounds


def of_one_step(collectives: Iterable[Collective], steps: int) -> list[tuple[str, int]]:
    """Returns (verb, numbers) of the collectives of the first of some equal steps."""
    sent = [(c.verb, c.numbers) for c in collectives]
    return sent[: len(sent) // steps]
