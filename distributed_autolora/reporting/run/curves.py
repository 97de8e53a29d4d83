"""What the figure of a run shows, as numbers: its accuracies with intervals, schedules, events and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from distributed_autolora.records import AccuracyCount, EpochRecord, RunResult
from distributed_autolora.reporting.masking import warns
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


@dataclass(frozen=True)
class Checks:
    """The checks by a stronger attack; both accuracies are on the same validation images."""

    stronger: Measured
    same_images: tuple[float, ...]
    """Accuracy of these images under the evaluation attack alone."""
    images: int
    warned: tuple[int, ...]
    """Epochs in which the evaluation attack overstated the robust accuracy."""


@dataclass(frozen=True)
class RunCurves:
    """All that is drawn of a run, by epoch; what a method does not have is empty or None."""

    attack: str
    epochs: tuple[int, ...]
    natural: Measured
    robust: Measured
    val_images: int
    checks: Checks | None
    lr: tuple[float, ...]
    lowered: tuple[int, ...]
    """Epochs after which the learning rate fell, by halving or by a fixed decay."""
    is_automatic: bool
    """The rate fell by halving."""
    restored: dict[int, int]
    """The epoch whose weights were restored, by the epoch after which that was."""
    deployed: int
    """The epoch whose weights are deployed; before the end of a run those kept so far."""
    weights: dict[str, tuple[float, ...]]
    """`natural_weight`, `kl_weight` and `natural_branch_accuracy`, of those that the run has."""
    losses: dict[str, tuple[float, ...]]
    seconds: dict[str, tuple[float, ...]]
    """Seconds of an epoch by phase; "other" is what no phase accounts for."""
    images_per_second: float
    """Median over the epochs."""


def run_curves(history: Sequence[EpochRecord], result: RunResult | None = None) -> RunCurves:
    """Returns what the figure of a run shows.

    Args:
        history: at least one epoch.
        result: the run's result; None while it is not finished.
    """
    epochs = tuple(record.epoch for record in history)
    last = history[-1]
    return RunCurves(
        attack=last.attack,
        epochs=epochs,
        natural=_measured(epochs, [record.natural for record in history]),
        robust=_measured(epochs, [record.robust for record in history]),
        val_images=last.robust.total,
        checks=_checks(history),
        lr=tuple(record.lr for record in history),
        lowered=tuple(record.epoch for record in history if record.next_lr < record.lr),
        is_automatic=any(record.halved for record in history),
        restored={record.epoch: record.restored_epoch for record in history if record.restored_epoch is not None},
        deployed=last.best_epoch if result is None else result.best_epoch,
        weights=_weights(history),
        losses=_losses(history),
        seconds=_seconds(history),
        images_per_second=median(record.images_per_second for record in history),
    )


def _measured(epochs: tuple[int, ...], counts: Sequence[AccuracyCount]) -> Measured:
    ends = [wilson_interval(count.correct, count.total) for count in counts]
    values = tuple(count.accuracy for count in counts)
    return Measured(epochs, values, tuple(low for low, _ in ends), tuple(high for _, high in ends))


def _checks(history: Sequence[EpochRecord]) -> Checks | None:
    checked = {record.epoch: record.masking for record in history if record.masking is not None}
    if not checked:
        return None
    return Checks(
        stronger=_measured(tuple(checked), [AccuracyCount(check.robust, check.images) for check in checked.values()]),
        same_images=tuple((check.robust + check.broken) / check.images for check in checked.values()),
        images=next(iter(checked.values())).images,
        warned=tuple(epoch for epoch, check in checked.items() if warns(check)),
    )


def _weights(history: Sequence[EpochRecord]) -> dict[str, tuple[float, ...]]:
    found: dict[str, tuple[float, ...]] = {}
    for name in ("natural_weight", "kl_weight", "natural_branch_accuracy"):
        values = [record.metrics().get(name) for record in history]
        known = tuple(value for value in values if value is not None)
        found |= {name: known} if len(known) == len(history) else {}
    return found


def _losses(history: Sequence[EpochRecord]) -> dict[str, tuple[float, ...]]:
    """The total first, then the terms in their usual order, then those of other methods."""
    terms = history[0].losses
    names = [*(name for name in _LOSSES if name in terms), *sorted(set(terms) - {*_LOSSES})]
    return {name: tuple(record.losses[name] for record in history) for name in names}


def _seconds(history: Sequence[EpochRecord]) -> dict[str, tuple[float, ...]]:
    """Phases that took part in some epoch, and "other": the rest of the epoch's time."""
    phases = [phase for phase in _PHASES if any(phase in record.phase_seconds for record in history)]
    found = {phase: tuple(record.phase_seconds.get(phase, 0.0) for record in history) for phase in phases}
    spent = (sum(record.phase_seconds.get(phase, 0.0) for phase in phases) for record in history)
    other = tuple(max(0.0, record.epoch_seconds - part) for record, part in zip(history, spent, strict=True))
    return {**found, "other": other}
