"""A run as pictures: its curves in one figure, and a few images with what the attack does to them.

Figures are built without pyplot, so that nothing global changes and no display is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from distributed_autolora.reporting.history import (
    LOSS_TERMS,
    NATURAL_VALIDATION,
    PHASES,
    ROBUST_VALIDATION,
    accuracy_counts,
    accuracy_names,
    attack_label,
    attack_name,
    compact,
    duration,
    pixel_fraction,
    series,
)
from distributed_autolora.reporting.statistics import wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

History = list[dict[str, Any]]

_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _GREY = "#0072b2", "#d55e00", "#009e73", "#b2182b", "#7b4ea3", "#8c8c8c"
_RIGHT, _WRONG = "#1a7f37", "#b2182b"
_COLUMNS = 8


def curves_figure(history: History, result: dict[str, Any] | None = None) -> Figure:
    """Returns one figure (1400 x 900 pixels at its own resolution) that explains a run.

    Panels: validation accuracies, learning rate, loss weights, losses, seconds by phase and, with a result on the
    test split, the test accuracies. A panel without values (loss weights under vanilla RFT) is left out.

    Args:
        history: at least one epoch.
        result: the run's result; None while it is not finished.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = [_draw_accuracies, _draw_lr, _draw_losses, _draw_seconds]
    if "natural_weight" in history[0]:
        panels.insert(2, _draw_loss_weights)
    tested = result if result is not None and result["test"] is not None else None
    total = len(panels) + (tested is not None)
    columns = 2 if total == 4 else 3
    figure = Figure(figsize=(14, 9), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    figure.suptitle(_title(history, result), fontsize=14, fontweight="bold")
    grid = figure.add_gridspec(2, columns)
    spare = 2 * columns - total
    cells = [grid[0, : 1 + spare], *[grid[(i + spare) // columns, (i + spare) % columns] for i in range(1, total)]]
    for draw, cell in zip(panels, cells, strict=False):
        axes = figure.add_subplot(cell)
        draw(axes, history)
        _finish_epoch_axes(axes, len(history))
    if tested is not None:
        _draw_test(figure.add_subplot(cells[-1]), tested)
    return figure


def samples_figure(samples: dict[str, Any], class_names: list[str], epsilon: float) -> Figure:
    """Returns up to eight test images, their perturbations and the adversarial images, with the predictions.

    Args:
        samples: x uint8 [n, C, H, W]; x_adv float [n, C, H, W] in [0, 1]; label, natural_prediction and
            adversarial_prediction [n]; C is 1 or 3.
        class_names: a name for each label.
        epsilon: largest perturbation of a pixel value in [0, 1].
    """
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(samples["x"]))
    x = samples["x"][:columns].astype(np.float64) / 255
    x_adv = samples["x_adv"][:columns].astype(np.float64)
    gain = 1 / (2 * epsilon) if epsilon > 0 else 1.0
    rows = (x, np.clip(0.5 + gain * (x_adv - x), 0, 1), x_adv)
    labels = (
        "natural",
        f"perturbation x {gain:.3g}\n(black -{pixel_fraction(epsilon)}, white +{pixel_fraction(epsilon)})",
        "adversarial",
    )
    figure = Figure(figsize=(max(1.6 + 1.5 * columns, 7.5), 6.4), dpi=100, layout="constrained")
    figure.suptitle("Test images under attack: predictions in green are right, in red wrong", fontsize=13)
    grid = figure.subplots(3, columns, squeeze=False)
    for row, (images, label) in enumerate(zip(rows, labels, strict=True)):
        grid[row, 0].set_ylabel(label, fontsize=10)
        for column in range(columns):
            _draw_image(grid[row, column], images[column])
    for column in range(columns):
        label_index = int(samples["label"][column])
        grid[0, column].set_title(f"label: {class_names[label_index]}", fontsize=9)
        for row, key in ((0, "natural_prediction"), (2, "adversarial_prediction")):
            prediction = int(samples[key][column])
            colour = _RIGHT if prediction == label_index else _WRONG
            grid[row, column].set_xlabel(f"seen as {class_names[prediction]}", color=colour, fontsize=9)
    return figure


def _title(history: History, result: dict[str, Any] | None) -> str:
    if result is None:
        return f"After epoch {history[-1]['epoch']}"
    seconds = (result.get("seconds") or {}).get("training")
    took = "" if seconds is None else f" in {duration(seconds)}"
    return f"{result['name']}: {len(history)} epoch{'s' if len(history) > 1 else ''}{took}"


def _epochs(history: History) -> NDArray[np.float64]:
    return np.array([metrics["epoch"] for metrics in history], dtype=float)


def _line(axes: Axes, history: History, key: str, label: str, colour: str, style: str = "-") -> None:
    axes.plot(
        _epochs(history), series(history, key), style, color=colour, label=label, linewidth=1.8, marker=".", gid=key
    )


def _finish_epoch_axes(axes: Axes, epochs: int) -> None:
    """Whole epochs below, and the legend under the axes, where it covers nothing."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.set_xlim(0.4, epochs + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(True, alpha=0.25)
    _legend_below(axes)


def _legend_below(axes: Axes) -> None:
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False, fontsize=9)


def _per_cent_axis(axes: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    axes.set_ylabel("accuracy (%)")


def _draw_accuracies(axes: Axes, history: History) -> None:
    attack = attack_name(history[0])
    best = history[-1].get("best_epoch")
    robust = series(history, ROBUST_VALIDATION + attack)
    _line(axes, history, NATURAL_VALIDATION, "natural", _BLUE)
    _line(axes, history, ROBUST_VALIDATION + attack, attack_label(attack), _ORANGE)
    for metrics, accuracy in zip(history, robust, strict=True):
        if metrics["epoch"] == best:
            label = f"best: epoch {best}"
            axes.plot(best, accuracy, "*", color=_RED, markersize=16, label=label, gid="best_epoch", zorder=5)
    axes.set_title("Validation accuracy")
    _per_cent_axis(axes)


def _draw_lr(axes: Axes, history: History) -> None:
    """Marks events between the epoch they follow and the next one, with the epoch whose state was restored."""
    epochs, lrs = _epochs(history), np.array(series(history, "lr"))
    axes.step(epochs, lrs, where="mid", color=_BLUE, linewidth=1.8, marker=".", label="learning rate")
    halved = [i for i, metrics in enumerate(history) if metrics.get("halved")]
    restored = [i for i, metrics in enumerate(history) if metrics.get("restored")]
    if halved:
        style: dict[str, Any] = {"linestyle": "none", "color": _ORANGE, "markersize": 9}
        axes.plot(epochs[halved] + 0.5, lrs[halved], "v", label="halved", gid="halved", **style)
    if restored:
        style = {"linestyle": "none", "color": _PURPLE, "markersize": 15, "fillstyle": "none"}
        axes.plot(epochs[restored] + 0.5, lrs[restored], "o", label="restored best epoch", gid="restored", **style)
    for i in restored:
        text = str(history[i].get("restored_epoch") or "")
        at = (epochs[i] + 0.5, lrs[i])
        axes.annotate(text, at, (0, 11), textcoords="offset points", ha="center", fontsize=9, color=_PURPLE)
    axes.set_yscale("log")
    axes.margins(y=0.2)
    axes.minorticks_off()
    rates = sorted(set(lrs))
    axes.set_yticks(rates, [compact(rate) for rate in rates])
    axes.set_title("Learning rate")
    axes.set_ylabel("learning rate (log scale)")


def _draw_loss_weights(axes: Axes, history: History) -> None:
    _line(axes, history, "natural_branch_accuracy", "natural-branch acc. (left)", _GREY, "--")
    _line(axes, history, "natural_weight", "lambda1 (left)", _BLUE)
    axes.plot([], [], color=_ORANGE, linewidth=1.8, marker=".", label="lambda2 (right)")
    axes.set_ylim(0, 1.03)
    axes.set_ylabel("lambda1, accuracy (0 to 1)")
    right = axes.twinx()
    _line(right, history, "kl_weight", "lambda2 (right)", _ORANGE)
    right.set_ylim(0, 1.15 * max(series(history, "kl_weight")))
    right.set_ylabel("lambda2")
    axes.set_title("Loss weights")


def _draw_losses(axes: Axes, history: History) -> None:
    _line(axes, history, "train/loss/total", "total", "black")
    for term, colour in zip(LOSS_TERMS, (_BLUE, _ORANGE, _GREEN, _PURPLE, _GREY), strict=True):
        if f"train/loss/{term}" in history[0]:
            _line(axes, history, f"train/loss/{term}", term.replace("_", " "), colour)
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.set_title("Training loss by term, weights included")
    axes.set_ylabel("mean over the epoch (nats)")


def _draw_seconds(axes: Axes, history: History) -> None:
    """Stacked bars; what no phase accounts for is "other"."""
    epochs, bottom = _epochs(history), np.zeros(len(history))
    total = np.nan_to_num(series(history, "seconds/epoch"))
    for phase, colour in zip(PHASES, (_ORANGE, _BLUE, _GREEN, _PURPLE, _RED, "black"), strict=True):
        if not any(f"seconds/{phase}" in metrics for metrics in history):
            continue
        seconds = np.nan_to_num(series(history, f"seconds/{phase}"))
        axes.bar(epochs, seconds, bottom=bottom, color=colour, label=phase.replace("_", " "), width=0.8)
        bottom += seconds
    axes.bar(epochs, np.clip(total - bottom, 0, None), bottom=bottom, color="#d0d0d0", label="other", width=0.8)
    axes.set_ylim(0, 1.08 * max(*total, *bottom, 1e-9))
    axes.set_axisbelow(True)
    rate = np.nanmedian(series(history, "images_per_second"))
    axes.set_title(f"Seconds by phase (trains on {rate:,.0f} images/s)")
    axes.set_ylabel("seconds per epoch")


def _draw_test(axes: Axes, result: dict[str, Any]) -> None:
    """Bars with 95 % Wilson intervals, the final model beside the untouched backbone."""
    parts = [("final model", result["test"], _BLUE)]
    if result.get("linear_head"):
        parts.append(("untouched backbone, linear head", result["linear_head"], _GREY))
    names = accuracy_names(result)
    width = 0.8 / len(parts)
    for offset, (label, part, colour) in enumerate(parts):
        at = np.arange(2) + (offset - (len(parts) - 1) / 2) * width
        counts = [accuracy_counts(part, name) for name in names]
        heights = np.array([correct / total for correct, total in counts])
        ends = np.array([wilson_interval(*count) for count in counts]).T
        axes.bar(at, heights, width=0.92 * width, color=colour, label=label)
        axes.errorbar(at, heights, yerr=np.abs(ends - heights), fmt="none", ecolor="black", capsize=4)
        for x, height, end in zip(at, heights, ends[1], strict=True):
            axes.text(x, end + 0.02, f"{100 * height:.1f} %", ha="center", fontsize=10)
    axes.set_xticks(range(2), ["natural", attack_label(result["attack"])])
    axes.set_ylim(0, 1.12)
    axes.set_title(f"Accuracy on {result['test_images']:,} test images, 95 % intervals")
    axes.set_yticks(np.linspace(0, 1, 6))
    _per_cent_axis(axes)
    axes.grid(True, axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    _legend_below(axes)


def _draw_image(axes: Axes, image: NDArray[np.float64]) -> None:
    """Draws [C, H, W] in [0, 1], grey when C is 1."""
    axes.imshow(np.moveaxis(image, 0, -1).squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
