"""What the figure of a run shows, as numbers: its accuracies with intervals, schedules, events and time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from distributed_autolora.records import (
    LOSS_TERMS,
    MASKING_GAP,
    MASKING_IMAGES,
    MASKING_STRONGER,
    NATURAL_VALIDATION,
    PHASES,
    ROBUST_VALIDATION,
    attack_name,
    series,
)
from distributed_autolora.reporting.masking import masking_warning
from distributed_autolora.reporting.statistics import wilson_interval

_LOSS = "train/loss/"
History = list[dict[str, Any]]


@dataclass(frozen=True)
class Measured:
    """An accuracy by epoch with its 95 % Wilson intervals, fractions in [0, 1]; no intervals for unknown counts."""

    epochs: tuple[int, ...]
    values: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None


@dataclass(frozen=True)
class Checks:
    """The checks by a stronger attack; both accuracies are on the same validation images."""

    stronger: Measured
    same_images: tuple[float, ...]
    """Accuracy of these images under the evaluation attack alone."""
    images: int
    warned: tuple[int, ...]
    """Epochs in which the evaluation attack promised too much."""


@dataclass(frozen=True)
class RunCurves:
    """All that is drawn of a run, by epoch; what a method does not have is empty or None."""

    attack: str
    epochs: tuple[int, ...]
    natural: Measured
    robust: Measured
    val_images: int | None
    checks: Checks | None
    lr: tuple[float, ...]
    lowered: tuple[int, ...]
    """Epochs after which the learning rate fell, by halving or by a fixed decay."""
    is_automatic: bool
    """The rate fell by halving."""
    restored: dict[int, int | None]
    """The epoch whose weights were taken back, by the epoch after which that was."""
    deployed: int
    """The epoch whose weights are deployed; before the end of a run those kept so far."""
    weights: dict[str, tuple[float, ...]]
    """`natural_weight`, `kl_weight` and `natural_branch_accuracy`, of those that the run has."""
    losses: dict[str, tuple[float, ...]]
    seconds: dict[str, tuple[float, ...]]
    """Seconds of an epoch by phase; "other" is what no phase accounts for."""
    images_per_second: float
    """Median over the epochs."""


def run_curves(history: History, result: dict[str, Any] | None = None) -> RunCurves:
    """Returns what the figure of a run shows.

    Args:
        history: at least one epoch.
        result: the run's result, which knows the number of validation images; None while it is not finished.
    """
    attack, images = attack_name(history[0]), None if result is None else int(result["val_images"])
    lowered = tuple(record["epoch"] for record in history if _is_lowered(record))
    rates = sorted(rate for rate in series(history, "images_per_second") if not math.isnan(rate))
    return RunCurves(
        attack=attack,
        epochs=tuple(record["epoch"] for record in history),
        natural=_measured(history, NATURAL_VALIDATION, images),
        robust=_measured(history, ROBUST_VALIDATION + attack, images),
        val_images=images,
        checks=_checks(history, "" if result is None else result["name"]),
        lr=tuple(series(history, "lr")),
        lowered=lowered,
        is_automatic=any(record.get("halved") for record in history),
        restored={record["epoch"]: record.get("restored_epoch") for record in history if record.get("restored")},
        deployed=history[-1]["best_epoch"] if result is None else result["best_epoch"],
        weights=_present(history, ("natural_weight", "kl_weight", "natural_branch_accuracy")),
        losses=_losses(history),
        seconds=_seconds(history),
        images_per_second=rates[len(rates) // 2] if rates else math.nan,
    )


def _is_lowered(record: dict[str, Any]) -> bool:
    return bool(record.get("halved")) or record.get("next_lr", record["lr"]) < record["lr"]


def _measured(records: History, key: str, images: int | None) -> Measured:
    epochs = tuple(record["epoch"] for record in records)
    values = tuple(float(record[key]) for record in records)
    if images is None:
        return Measured(epochs, values, None, None)
    ends = [wilson_interval(round(value * images), images) for value in values]
    return Measured(epochs, values, tuple(low for low, _ in ends), tuple(high for _, high in ends))


def _checks(history: History, name: str) -> Checks | None:
    checked = [record for record in history if MASKING_GAP in record]
    if not checked:
        return None
    images = int(checked[0][MASKING_IMAGES])
    return Checks(
        stronger=_measured(checked, MASKING_STRONGER, images),
        same_images=tuple(record[MASKING_STRONGER] + record[MASKING_GAP] for record in checked),
        images=images,
        warned=tuple(record["epoch"] for record in checked if masking_warning(record, name) is not None),
    )


def _present(history: History, keys: tuple[str, ...]) -> dict[str, tuple[float, ...]]:
    return {key: tuple(series(history, key)) for key in keys if any(key in record for record in history)}


def _losses(history: History) -> dict[str, tuple[float, ...]]:
    """The total first, then the terms in their usual order, then those of a method of one's own."""
    own = sorted({key for record in history for key in record if key.startswith(_LOSS)})
    keys = dict.fromkeys([*(_LOSS + term for term in ("total", *LOSS_TERMS)), *own])
    return {key.removeprefix(_LOSS): values for key, values in _present(history, tuple(keys)).items()}


def _seconds(history: History) -> dict[str, tuple[float, ...]]:
    found = _present(history, tuple(f"seconds/{phase}" for phase in PHASES))
    phases = {
        key.removeprefix("seconds/"): tuple(0.0 if math.isnan(value) else value for value in values)
        for key, values in found.items()
    }
    spent = [sum(values) for values in zip(*phases.values(), strict=True)] or [0.0] * len(history)
    whole = series(history, "seconds/epoch")
    other = tuple(max(0.0, 0.0 if math.isnan(w) else w - s) for w, s in zip(whole, spent, strict=True))
    return {**phases, "other": other}
