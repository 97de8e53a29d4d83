"""Panels of a run's figure over the epochs: learning rate, loss weights, losses and time."""

from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from distributed_autolora.records import AccuracyCount, EpochRecord
from distributed_autolora.reporting.format import compact
from distributed_autolora.reporting.statistics import wilson_interval
from distributed_autolora.training.masking_check import FOSC_LIMIT

BLUE, RED, GREEN, PINK, SKY, ORANGE = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"
BLACK, GREY, PALE = "#222222", "#8c8c8c", "#cfcfcf"
_MOST_TICKS = 7
_PHASES = {
    "attack": (RED, "attack"),
    "step": (BLUE, "training step"),
    "validation": (GREEN, "validation"),
    "data": (ORANGE, "data"),
    "gradient_similarity": (SKY, "gradient similarity"),
    "masking": (PINK, "stronger attack"),
    "other": (PALE, "other"),
}
_LOSSES = {
    "total": (BLACK, "-"),
    "natural": (BLUE, "--"),
    "adversarial": (RED, "-."),
    "kl": (GREEN, ":"),
    "natural_frozen": (SKY, "--"),
    "kl_frozen": (ORANGE, ":"),
}


class Measured(NamedTuple):
    """An accuracy by epoch with its 95 % Wilson intervals, fractions in [0, 1]."""

    epochs: tuple[int, ...]
    values: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def measured(counts: dict[int, AccuracyCount]) -> Measured:
    """Returns an accuracy with intervals from its counts by epoch."""
    ends = [wilson_interval(count.correct, count.total) for count in counts.values()]
    return Measured(tuple(counts), tuple(count.accuracy for count in counts.values()), *zip(*ends, strict=True))


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


def draw_lr(axes: Axes, history: Sequence[EpochRecord]) -> None:
    """Events are drawn between their epoch and the next one; a restore with the epoch that it restored."""
    rates = [record.lr for record in history]
    edges = [record.epoch - 0.5 for record in history] + [history[-1].epoch + 0.5]
    axes.stairs(np.array(rates), np.array(edges), baseline=None, color=BLUE, linewidth=2, label="learning rate")
    label = "halved" if any(record.halved for record in history) else "lowered"
    restored = [record for record in history if record.restored]
    triangle: dict[str, Any] = {"marker": "v", "color": RED, "markersize": 9, "label": label, "gid": "lowered"}
    circle: dict[str, Any] = {"marker": "o", "color": BLACK, "markersize": 15, "fillstyle": "none", "gid": "restored"}
    for marked, style in ((lowered(history), triangle), (restored, {**circle, "label": "restored epoch"})):
        if marked:
            places = [record.epoch + 0.5 for record in marked]
            axes.plot(places, [record.lr for record in marked], linestyle="none", **style)
    for record in restored:
        place, text = (record.epoch + 0.5, record.lr), str(record.restored_epoch)
        axes.annotate(text, place, (10, 3), textcoords="offset points", fontsize=9.5, fontweight="bold")
    levels = sorted({*rates})
    axes.set(yscale="log", ylim=(levels[0] / 1.7, levels[-1] * 2.2))
    axes.minorticks_off()
    shown = levels[::-1][:: -(-len(levels) // _MOST_TICKS)]
    axes.set_yticks(shown, [compact(rate) for rate in shown])
    title(axes, "Learning rate (log scale)")
    _legend_beside(axes)


def lowered(history: Sequence[EpochRecord]) -> list[EpochRecord]:
    """Returns the epochs after which the learning rate fell, by halving or by a fixed decay."""
    return [record for record in history if record.next_lr < record.lr]


def draw_weights(axes: Axes, history: Sequence[EpochRecord]) -> None:
    epochs = [record.epoch for record in history]
    size = 4 if len(epochs) <= 30 else 2
    style: dict[str, Any] = {"linewidth": 1.7, "markersize": size}
    natural = [record.natural_weight or 0.0 for record in history]
    axes.plot(epochs, natural, "o-", color=BLUE, label="lambda1", **style)
    branches = [record.natural_branch.accuracy for record in history if record.natural_branch is not None]
    if len(branches) == len(epochs):
        axes.plot(epochs, branches, "^:", color=GREY, markersize=size, label="natural-branch\naccuracy")
    axes.set(ylim=(0, 1.06), ylabel="lambda1, accuracy")
    right = axes.twinx()
    kl = [record.kl_weight or 0.0 for record in history]
    right.plot(epochs, kl, "s--", color=RED, label="lambda2 (right axis)", **style)
    right.set_ylim(0, max(1.06 * max(kl), 1e-9))
    right.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    right.set_ylabel("lambda2", color=RED)
    right.tick_params(axis="y", labelcolor=RED)
    title(axes, "Loss weights")
    _legend_beside(axes, offset=1.085, lines=right)


def draw_fosc(axes: Axes, history: Sequence[EpochRecord]) -> None:
    """The epochs that measured it, and the limit above which gradients may be masked."""
    found = {record.epoch: record.fosc for record in history if record.fosc is not None}
    axes.plot([*found], [*found.values()], "o-", color=ORANGE, markersize=4, linewidth=1.7, label="FOSC", gid="fosc")
    axes.axhline(FOSC_LIMIT, color=BLACK, linewidth=1, linestyle="--", label="limit", gid="fosc_limit")
    axes.set_ylim(0, 1.06 * max(FOSC_LIMIT, *found.values(), 1e-9))
    axes.set_ylabel("mean (nats)")
    title(axes, "First-order stationarity of the evaluation attack (small: it has converged)")
    _legend_beside(axes)


def draw_losses(axes: Axes, history: Sequence[EpochRecord]) -> None:
    epochs = [record.epoch for record in history]
    for term, values in losses(history).items():
        colour, style = _LOSSES.get(term, (PINK, "-"))
        mark = "." if len(epochs) <= 30 else ""
        axes.plot(epochs, values, style, color=colour, marker=mark, linewidth=1.7, label=term.replace("_", " "))
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.set_ylabel("mean (nats)")
    title(axes, "Training loss by term, weights included")
    _legend_beside(axes)


def draw_seconds(axes: Axes, history: Sequence[EpochRecord]) -> None:
    """Stacked bars."""
    epochs, bottom = [record.epoch for record in history], np.zeros(len(history))
    for phase, values in seconds(history).items():
        colour, label = _PHASES[phase]
        axes.bar(epochs, values, bottom=bottom, width=0.8, color=colour, label=label)
        bottom += np.array(values)
    axes.set(ylim=(0, max(1.06 * float(bottom.max()), 1e-9)), ylabel="seconds")
    rate = median(record.images_per_second for record in history)
    title(axes, f"Time of an epoch by phase ({rate:,.0f} training images a second, median)")
    _legend_beside(axes, is_reversed=True)


def title(axes: Axes, text: str, *, pad: float = 5) -> None:
    axes.set_title(text, loc="left", fontsize=11, fontweight="bold", pad=pad)


def _legend_beside(axes: Axes, *, offset: float = 1.02, lines: Axes | None = None, is_reversed: bool = False) -> None:
    found = [*zip(*axes.get_legend_handles_labels(), strict=True)]
    found += [] if lines is None else [*zip(*lines.get_legend_handles_labels(), strict=True)]
    handles, labels = zip(*(found[::-1] if is_reversed else found), strict=True)
    axes.legend(
        handles, labels, loc="center left", bbox_to_anchor=(offset, 0.5), frameon=False, fontsize=9.5, borderaxespad=0
    )
