"""Panels of a run's figure over the epochs: learning rate, loss weights, losses and time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from distributed_autolora.reporting.format import compact
from distributed_autolora.reporting.run.curves import RunCurves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, RED, GREEN, PINK, SKY, ORANGE = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"
BLACK, GREY, PALE = "#222222", "#8c8c8c", "#cfcfcf"
_MOST_TICKS = 7
_PHASE_NAMES = {"step": "training step", "masking": "stronger attack", "gradient_similarity": "gradient similarity"}
_PHASE_COLOURS = {
    "attack": RED,
    "step": BLUE,
    "validation": GREEN,
    "data": ORANGE,
    "gradient_similarity": SKY,
    "masking": PINK,
    "other": PALE,
}
_LOSSES = {
    "total": (BLACK, "-"),
    "natural": (BLUE, "--"),
    "adversarial": (RED, "-."),
    "kl": (GREEN, ":"),
    "natural_frozen": (SKY, "--"),
    "kl_frozen": (ORANGE, ":"),
}


def draw_lr(axes: Axes, curves: RunCurves) -> None:
    """Events stand between the epoch that they follow and the next one; a restore with the epoch it goes back to."""
    epochs, lrs = np.array(curves.epochs, dtype=float), np.array(curves.lr)
    edges = np.concatenate([epochs - 0.5, epochs[-1:] + 0.5])
    axes.stairs(lrs, edges, baseline=None, color=BLUE, linewidth=2, label="learning rate")
    at = dict(zip(curves.epochs, curves.lr, strict=True))
    if curves.lowered:
        label = "halved" if curves.is_automatic else "lowered"
        axes.plot(
            np.array(curves.lowered) + 0.5, [at[epoch] for epoch in curves.lowered], "v", color=RED, markersize=9,
            label=label, gid="lowered",
        )  # fmt: skip
    if curves.restored:
        axes.plot(
            np.array(list(curves.restored)) + 0.5, [at[epoch] for epoch in curves.restored], "o", color=BLACK,
            markersize=15, fillstyle="none", label="went back to epoch", gid="restored",
        )  # fmt: skip
    for epoch, source in curves.restored.items():
        text = "" if source is None else str(source)
        axes.annotate(
            text, (epoch + 0.5, at[epoch]), (10, 3), textcoords="offset points", fontsize=9.5, fontweight="bold"
        )
    _rate_axis(axes, sorted({*curves.lr}))
    title(axes, "Learning rate (log scale)")
    _legend_beside(axes)


def _rate_axis(axes: Axes, rates: list[float]) -> None:
    axes.set_yscale("log")
    axes.set_ylim(rates[0] / 1.7, rates[-1] * 2.2)
    axes.minorticks_off()
    step = -(-len(rates) // _MOST_TICKS)
    shown = rates[::-1][::step]
    axes.set_yticks(shown, [compact(rate) for rate in shown])


def draw_weights(axes: Axes, curves: RunCurves) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs, weights = curves.epochs, curves.weights
    size = 4 if len(epochs) <= 30 else 2
    axes.plot(epochs, weights["natural_weight"], "o-", color=BLUE, linewidth=1.7, markersize=size, label="lambda1")
    if "natural_branch_accuracy" in weights:
        label = "natural-branch\naccuracy"
        axes.plot(epochs, weights["natural_branch_accuracy"], "^:", color=GREY, markersize=size, label=label)
    axes.set_ylim(0, 1.06)
    axes.set_ylabel("lambda1, accuracy")
    right = axes.twinx()
    right.plot(
        epochs, weights["kl_weight"], "s--", color=RED, linewidth=1.7, markersize=size, label="lambda2 (right axis)"
    )
    right.set_ylim(0, max(1.06 * max(weights["kl_weight"]), 1e-9))
    right.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    right.set_ylabel("lambda2", color=RED)
    right.tick_params(axis="y", labelcolor=RED)
    title(axes, "Loss weights")
    _legend_beside(axes, offset=1.085, lines=right)


def draw_losses(axes: Axes, curves: RunCurves) -> None:
    for term, values in curves.losses.items():
        colour, style = _LOSSES.get(term, (PINK, "-"))
        mark = "." if len(curves.epochs) <= 30 else ""
        axes.plot(curves.epochs, values, style, color=colour, marker=mark, linewidth=1.7, label=term.replace("_", " "))
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    title(axes, "Training loss by term, weights included")
    axes.set_ylabel("mean (nats)")
    _legend_beside(axes)


def draw_seconds(axes: Axes, curves: RunCurves) -> None:
    """Stacked bars."""
    bottom = np.zeros(len(curves.epochs))
    for phase, values in curves.seconds.items():
        axes.bar(
            curves.epochs, values, bottom=bottom, width=0.8, color=_PHASE_COLOURS[phase],
            label=_PHASE_NAMES.get(phase, phase),
        )  # fmt: skip
        bottom += np.array(values)
    axes.set_ylim(0, max(1.06 * float(bottom.max()), 1e-9))
    title(axes, f"Time of an epoch by phase ({curves.images_per_second:,.0f} training images a second, median)")
    axes.set_ylabel("seconds")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9.5,
        borderaxespad=0,
    )  # fmt: skip


def title(axes: Axes, text: str, *, pad: float = 5) -> None:
    axes.set_title(text, loc="left", fontsize=11, fontweight="bold", pad=pad)


def _legend_beside(axes: Axes, *, offset: float = 1.02, lines: Axes | None = None) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if lines is not None:
        more = lines.get_legend_handles_labels()
        handles, labels = [*handles, *more[0]], [*labels, *more[1]]
    axes.legend(
        handles,
        labels,
        loc="center left",
        bbox_to_anchor=(offset, 0.5),
        frameon=False,
        fontsize=9.5,
        borderaxespad=0,
    )
