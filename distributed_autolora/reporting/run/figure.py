"""A run in one picture: panels over a common axis of epochs, beside its accuracy on the test split.

Built without pyplot, so that nothing global changes and no display is needed. The colours are those of Okabe and Ito
(2008), which people with any colour vision tell apart; lines differ in their marks and dashes as well.
"""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from distributed_autolora.records import AccuracyCount, EpochRecord, MaskingCheck, RunResult
from distributed_autolora.reporting.format import attack_label, duration, threat_text
from distributed_autolora.reporting.masking import warns
from distributed_autolora.reporting.run.panels import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    RED,
    Measured,
    draw_fosc,
    draw_losses,
    draw_lr,
    draw_seconds,
    draw_weights,
    lowered,
    measured,
    title,
)
from distributed_autolora.reporting.statistics import wilson_interval

_WIDTH, _DPI = 12.0, 100
_TOP, _BOTTOM, _GAP = 1.62, 0.62, 0.52
_LEFT, _MAIN_END, _SIDE_START, _RIGHT = 0.07, 0.775, 0.80, 0.985
_LEGEND_PAD = 38
_BARS: dict[str, Any] = {"linewidth": 1.4, "zorder": 3}
_ALARM: dict[str, Any] = {"fontsize": 13, "fontweight": "bold", "zorder": 6, "color": BLACK}


class NotebookFigure(Figure):
    """A figure that a notebook shows as a picture, although it is built without pyplot."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=72)
        return content.getvalue()


def curves_figure(history: Sequence[EpochRecord], result: RunResult) -> Figure:
    """Returns the figure of a run, 1200 pixels wide at its own resolution.

    Panels over the epochs: validation accuracies with 95 % intervals and the checks by a stronger attack, first-order
    stationarity, learning rate with every halving and restore, loss weights, losses, seconds by phase; beside the first
    the accuracies on the test split. The deployed epoch and every fall of the rate are marked in all. What a run does
    not have is left out.
    """
    panels = [(_draw_accuracies, 3.4), (draw_lr, 1.5), (draw_losses, 1.7), (draw_seconds, 1.8)]
    if any(record.fosc is not None for record in history):
        panels.insert(1, (draw_fosc, 1.3))
    if history[-1].natural_weight is not None:
        panels.insert(-2, (draw_weights, 1.7))
    height = _TOP + _BOTTOM + sum(inches for _, inches in panels) + _GAP * (len(panels) - 1)
    figure = NotebookFigure(figsize=(_WIDTH, height), dpi=_DPI)
    _write_title(figure, result)
    top, first = height - _TOP, None
    for draw, inches in panels:
        box = (_LEFT, (top - inches) / height, _MAIN_END - _LEFT, inches / height)
        axes = figure.add_axes(box, sharex=first)
        draw(axes, history)
        _mark_epochs(axes, history, result.best_epoch)
        axes.yaxis.set_label_coords(-0.055, 0.5)
        if first is None and result.test is not None:
            _draw_test(figure.add_axes((_SIDE_START, box[1], _RIGHT - _SIDE_START, box[3]), sharey=axes), result)
        first = first or axes
        axes.tick_params(labelbottom=draw is panels[-1][0])
        top -= inches + _GAP
    axes.set_xlabel("epoch")
    return figure


def _write_title(figure: Figure, result: RunResult) -> None:
    height, epochs = figure.get_figheight(), result.stopped_epoch
    line = (
        f"{epochs} epoch{'s' if epochs > 1 else ''} in {duration(result.cost.seconds)}, deployed: epoch "
        f"{result.best_epoch}. {result.train_images:,} training and {result.val_images:,} validation images; "
        f"perturbations {threat_text(result.norm, result.epsilon)}."
    )
    figure.text(_LEFT, 1 - 0.2 / height, result.name, fontsize=15, fontweight="bold", va="top")
    figure.text(_LEFT, 1 - 0.53 / height, line, fontsize=10.5, va="top", color="#444444")


def _mark_epochs(axes: Axes, history: Sequence[EpochRecord], deployed: int) -> None:
    """Integer epochs below; thin lines where the rate fell, a dashed one at the deployed epoch."""
    for record in lowered(history):
        axes.axvline(record.epoch + 0.5, color=GREY, linewidth=0.8, linestyle=":", zorder=0.5, gid="lowered_line")
    axes.axvline(deployed, color=BLACK, linewidth=1.0, linestyle="--", zorder=0.6, gid="deployed_line")
    axes.set(xlim=(history[0].epoch - 0.7, history[-1].epoch + 0.7), axisbelow=True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True, min_n_ticks=1))
    axes.grid(True, axis="y", alpha=0.25)


def _draw_accuracies(axes: Axes, history: Sequence[EpochRecord]) -> None:
    last, deployed = history[-1], history[history[-1].best_epoch - 1]
    attack = attack_label(last.attack)
    _draw_measured(axes, measured({record.epoch: record.natural for record in history}), "natural", BLUE, "o-")
    _draw_measured(axes, measured({record.epoch: record.robust for record in history}), attack, RED, "s-")
    _draw_checks(axes, {record.epoch: record.masking for record in history if record.masking is not None}, attack)
    axes.plot(
        deployed.epoch, deployed.robust.accuracy, "*", color=BLACK, markersize=15, zorder=5, gid="deployed",
        label="deployed model",
    )  # fmt: skip
    title(axes, f"Validation accuracy on {last.robust.total:,} images, with 95 % intervals", pad=_LEGEND_PAD)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
    axes.set_ylabel("accuracy (%)")
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.008, 1.0), ncols=3, frameon=False, fontsize=9.5, borderaxespad=0.2,
        columnspacing=1.2, handletextpad=0.5,
    )  # fmt: skip


def _draw_measured(axes: Axes, measured: Measured, label: str, colour: str, style: str) -> None:
    size = 4 if len(measured.epochs) <= 30 else 2
    axes.plot(measured.epochs, measured.values, style, color=colour, label=label, linewidth=1.7, markersize=size)
    if len(measured.epochs) > 1:
        axes.fill_between(measured.epochs, measured.low, measured.high, color=colour, alpha=0.16, linewidth=0)
    else:
        axes.vlines(measured.epochs, measured.low, measured.high, color=colour, **_BARS)


def _draw_checks(axes: Axes, checks: dict[int, MaskingCheck], attack: str) -> None:
    """The stronger attack as filled diamonds, hollow ones for the evaluation attack on the same images."""
    if not checks:
        return
    found = measured({epoch: AccuracyCount(check.robust, check.images) for epoch, check in checks.items()})
    both = [(check.robust + check.broken) / check.images for check in checks.values()]
    images = next(iter(checks.values())).images
    style: dict[str, Any] = {"linestyle": "none", "marker": "D", "markersize": 7, "zorder": 4}
    axes.vlines(found.epochs, found.low, found.high, color=GREEN, **_BARS)
    axes.plot(
        found.epochs, both, color=RED, fillstyle="none", gid="same_images", label=f"{attack} on {images} of them",
        **style,
    )  # fmt: skip
    axes.plot(
        found.epochs, found.values, color=GREEN, gid="stronger",
        label="stronger attack on the same", **{**style, "markersize": 6},
    )  # fmt: skip
    warned = [(epoch, low) for epoch, low in zip(found.epochs, found.low, strict=True) if warns(checks[epoch])]
    for place in warned:
        axes.annotate("!", place, (0, -15), textcoords="offset points", ha="center", **_ALARM)
    if warned:
        axes.plot([], [], linestyle="none", marker="$!$", color=BLACK, markersize=9, label="warning: masking")


def _draw_test(axes: Axes, result: RunResult) -> None:
    """Points with 95 % Wilson intervals, the deployed model filled, the untouched backbone hollow."""
    deployed = ("deployed model", result.test, "full", -0.16)
    for label, part, fill, shift in (deployed, ("backbone, linear head", result.linear_head, "none", 0.22)):
        if part is None:
            continue
        for place, (count, colour, mark) in enumerate(((part.natural, BLUE, "o"), (part.robust, RED, "s"))):
            low, high = wilson_interval(count.correct, count.total)
            axes.vlines(place + shift, low, high, color=colour, linewidth=1.6)
            axes.plot(
                place + shift, count.accuracy, mark, color=colour, fillstyle=fill, markersize=8,
                markerfacecolor=colour if fill == "full" else "white",
            )  # fmt: skip
            axes.annotate(
                f"{100 * count.accuracy:.1f}", (place + shift, high), (0, 3), textcoords="offset points", ha="center",
                fontsize=10, fontweight="bold" if fill == "full" else "normal",
            )  # fmt: skip
        axes.plot([], [], "D", color=GREY, fillstyle=fill, label=label)
    bottom, top = axes.get_ylim()
    axes.set(xlim=(-0.5, 1.5), ylim=(bottom, top + 0.06 * (top - bottom)), axisbelow=True)
    axes.set_xticks(range(2), ["natural", attack_label(result.attack)])
    axes.tick_params(labelleft=False)
    axes.grid(True, axis="y", alpha=0.25)
    title(axes, f"On {result.test_images:,} test images", pad=_LEGEND_PAD)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.03, 1.0), frameon=False, fontsize=9.5, borderaxespad=0.2,
        handletextpad=0.3, labelspacing=0.15,
    )  # fmt: skip
