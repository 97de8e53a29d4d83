"""What the figure of a run shows, as numbers by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distributed_autolora.records import AccuracyCount, EpochRecord
from distributed_autolora.reporting.statistics import wilson_interval

_LOSSES = ("total", "natural", "adversarial", "kl", "natural_frozen", "kl_frozen")
_PHASES = ("attack", "step", "validation", "data", "gradient_similarity", "masking")


@dataclass(frozen=True)
class Measured:
    """An accuracy by epoch with its 95 % Wilson intervals, fractions in [0, 1]."""

    epochs: tuple[int, ...]
    values: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def measured(counts: dict[int, AccuracyCount]) -> Measured:
    """Returns an accuracy with intervals from its counts by epoch."""
    ends = [wilson_interval(count.correct, count.total) for count in counts.values()]
    values = tuple(count.accuracy for count in counts.values())
    return Measured(tuple(counts), values, tuple(low for low, _ in ends), tuple(high for _, high in ends))


def losses(history: Sequence[EpochRecord]) -> dict[str, list[float]]:
    """Returns the total first, then the terms in their usual order, then those of other methods."""
    terms = history[0].losses
    names = [*(name for name in _LOSSES if name in terms), *sorted(set(terms) - {*_LOSSES})]
    return {name: [record.losses[name] for record in history] for name in names}


def seconds(history: Sequence[EpochRecord]) -> dict[str, list[float]]:
    """Returns the phases that took part in some epoch, and "other": the rest of the epoch's time."""
    phases = [phase for phase in _PHASES if any(phase in record.phase_seconds for record in history)]
    found = {phase: [record.phase_seconds.get(phase, 0.0) for record in history] for phase in phases}
    spent = [sum(parts) for parts in zip(*found.values(), strict=True)]
    other = [max(0.0, record.epoch_seconds - part) for record, part in zip(history, spent, strict=True)]
    return {**found, "other": other}
