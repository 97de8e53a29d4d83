"""A study as pictures. Built without pyplot, so that nothing global changes and no display is needed."""

import math
import statistics
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from distributed_autolora.records import ArmRecord
from distributed_autolora.reporting.format import attack_label, number
from distributed_autolora.reporting.statistics import wilson_interval
from distributed_autolora.reporting.study.loading import StudyResults, StudyRun, metric_label
from distributed_autolora.reporting.study.run_tables import mean_final_cost, summed, total

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#7b4ea3", "#b2182b", "#8c8c8c", "#c9a000", "#56b4e9")
_MARKERS = "os^Dv<>P"


def accuracies_figure(study: StudyResults) -> Figure | None:
    """Returns every seed's test accuracies with 95 % Wilson intervals, one panel an accuracy; None without any."""
    metrics = [m for m in study.metrics if any(study.accuracies(arm.id, m) for arm in study.arms)]
    if not metrics:
        return None
    size = 1.5 + 4.0 * len(metrics), 1.9 + 0.55 * len(study.arms)
    figure = _figure(*size, "Test accuracy of every seed; bars: 95 % intervals, lines: means")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        for height, arm in enumerate(study.arms):
            _draw_seeds(axes, study, arm, metric, height)
        axes.set_yticks(range(len(study.arms)), [arm.label if axes is panels[0] else "" for arm in study.arms])
        axes.set(ylim=(len(study.arms) - 0.5, -0.5), xlabel=f"{metric_label(metric)} accuracy (%)")
        axes.grid(True, axis="x", alpha=0.25)
    return figure


def cost_figure(study: StudyResults) -> Figure | None:
    """Returns robust test accuracy against cost, search included; None without an evaluated run.

    A hollow mark is one final run alone, the filled one includes the search; small dots are the seeds.
    """
    robust = next((m for m in study.metrics[1:] if any(study.accuracies(arm.id, m) for arm in study.arms)), None)
    if robust is None:
        return None
    title = "Robust accuracy against cost: hollow: one final run alone; filled: with its search"
    figure = _figure(12, 4.6 + 0.06 * len(study.arms), title)
    measures = ("worker_seconds", "worker-seconds"), ("passes", "forward and backward image passes")
    for axes, (measure, label) in zip(figure.subplots(1, 2), measures, strict=True):
        for index, arm in enumerate(study.arms):
            _draw_cost(axes, study, arm, robust, measure, index)
        axes.set(xscale="log", xlabel=f"{label} (log scale)", ylabel=f"{metric_label(robust)} test accuracy (%)")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.15, y=0.15)
        axes.grid(True, which="both", alpha=0.2)
    _shared_legend(figure)
    return figure


def search_figure(study: StudyResults) -> Figure | None:
    """Returns a dot for every trial over its first setting, one panel a searched arm; None without trials.

    Failed trials are crosses at the lower edge, stopped ones hollow, the chosen setting is ringed; the dashed line
    is the reference's own validation accuracy on the search seed, where the reference was not searched.
    """
    arms = [arm for arm in study.arms if arm.grid and any(run.history for run in study.of(arm.id, "search"))]
    if not arms:
        return None
    title = "How much a method depends on its settings: one mark a trial"
    figure = _figure(1.0 + 5.6 * len(arms), 6.2, f"{title}\nring: chosen; hollow: not finished; cross: failed")
    panels = figure.subplots(1, len(arms), squeeze=False, sharey=True)[0]
    for axes, arm in zip(panels, arms, strict=True):
        _draw_search(axes, study, arm)
        attack = next(run.attack for run in study.of(arm.id, "search") if run.attack)
        axes.set_title(f"{arm.label}, seed {study.record.search_seed}")
        if axes is panels[0]:
            axes.set_ylabel(f"best {attack_label(attack)} validation accuracy (%)")
        axes.margins(x=0.15, y=0.12)
        axes.grid(True, axis="y", alpha=0.25)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False, fontsize=9)
    return figure


def similarity_figure(study: StudyResults) -> Figure | None:
    """Returns gradient similarity and robust validation accuracy by epoch; None where it was not measured."""
    measured = {
        arm.id: [run for run in study.of(arm.id, "final") if run.history and run.history[-1].gradient_similarity]
        for arm in study.arms
    }
    attack = next((run.attack for runs in measured.values() for run in runs if run.attack), None)
    if attack is None:
        return None
    figure = _figure(12, 4.8, "Thick: mean over seeds, thin: every seed. Accuracy is on validation images")
    left, right = figure.subplots(1, 2)
    _draw_by_epoch(left, study, measured, "gradient_similarity")
    _draw_by_epoch(right, study, measured, f"val/robust_accuracy/{attack}", scale=100)
    left.set(title="Gradient similarity (Eq. 3 and 4)", ylabel="mean cosine per image, from -1 to 1")
    right.set(title="Robust validation accuracy", ylabel=f"{attack_label(attack)} validation accuracy (%)")
    _shared_legend(figure)
    return figure


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(max(8.0, width), height), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=12)
    return figure


def _style(index: int) -> dict[str, Any]:
    return {"color": _COLOURS[index % len(_COLOURS)]}


def _shared_legend(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    # About: the mark and its margins, then the text by the letter.
    inches = 0.6 + 0.066 * max(map(len, labels), default=1)
    columns = max(1, min(5, int(figure.get_figwidth() / inches)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _draw_seeds(axes: Axes, study: StudyResults, arm: ArmRecord, metric: str, height: int) -> None:
    counts = list(study.accuracies(arm.id, metric).values())
    style = _style(height)
    if not counts:
        axes.text(0.5, height, "not run", transform=axes.get_yaxis_transform(), ha="center", va="center", fontsize=9)
        return
    at = height + (np.arange(len(counts)) - (len(counts) - 1) / 2) * 0.18
    values = np.array([100 * part.accuracy for part in counts])
    ends = 100 * np.array([wilson_interval(part.correct, part.total) for part in counts]).T
    axes.errorbar(values, at, xerr=np.abs(ends - values), fmt="o", capsize=2, markersize=5, linewidth=1, **style)
    axes.plot([values.mean()] * 2, [height - 0.38, height + 0.38], linewidth=2, **style)


def _draw_cost(axes: Axes, study: StudyResults, arm: ArmRecord, metric: str, measure: str, index: int) -> None:
    final, search = mean_final_cost(study, arm.id), total(study.of(arm.id, "search"))
    values = [100 * part.accuracy for part in study.accuracies(arm.id, metric).values()]
    if final is None or not values or not (alone := getattr(final, measure)):
        return
    style, together = _style(index), getattr(summed([final, search]), measure)
    mean, marker = statistics.fmean(values), _MARKERS[(index + index // len(_COLOURS)) % len(_MARKERS)]
    axes.plot([alone, together], [mean, mean], "-", linewidth=1, alpha=0.6, **style)
    axes.plot(alone, mean, marker, fillstyle="none", markersize=10, **style)
    axes.plot(together, mean, marker, markersize=10, label=arm.label, gid=arm.id, **style)
    axes.plot([together] * len(values), values, ".", markersize=5, **style)


def _draw_search(axes: Axes, study: StudyResults, arm: ArmRecord) -> None:
    """The first setting to the right, a colour for every combination of the others."""
    first, *others = arm.grid
    ticks = {value: place for place, value in enumerate(sorted(arm.grid[first]))}
    combinations: dict[tuple[Any, ...], list[StudyRun]] = {}
    for run in study.of(arm.id, "search"):
        combinations.setdefault(tuple(run.settings.get(key) for key in others), []).append(run)
    chosen = [run.settings for run in study.of(arm.id, "final")]
    for index, (values, runs) in enumerate(combinations.items()):
        shift = (index - (len(combinations) - 1) / 2) * 0.6 / max(1, len(combinations))
        label = ", ".join(f"{key.split('.')[-1]} {number(v)}" for key, v in zip(others, values, strict=True))
        style, marker = _style(index), _MARKERS[index % len(_MARKERS)]
        axes.plot([], [], marker, label=label or arm.label, **style)
        for run in runs:
            at = ticks.get(run.settings.get(first, math.nan), 0) + shift
            _draw_trial(axes, run, at, marker, style)
            if run.settings in chosen and run.validation_accuracy is not None:
                best = 100 * run.validation_accuracy
                axes.plot(at, best, "o", fillstyle="none", color="black", markersize=14, gid="chosen")
    axes.set_xticks(list(ticks.values()), [number(value) for value in ticks])
    for place in list(ticks.values())[1:]:
        axes.axvline(place - 0.5, color="black", linewidth=0.8, alpha=0.25)
    axes.set_xlabel(first.split(".")[-1].replace("lr", "learning rate"))
    own = [r for r in study.of(arm.reference or "", "final") if r.seed == study.record.search_seed]
    if own and own[0].validation_accuracy is not None and not study.of(arm.reference or "", "search"):
        label = f"{study.arm(own[0].arm).label}, no search"
        axes.axhline(100 * own[0].validation_accuracy, linestyle="--", color="black", linewidth=1, label=label)


def _draw_trial(axes: Axes, run: StudyRun, at: float, marker: str, style: dict[str, Any]) -> None:
    if run.status == "failed":
        axes.plot(at, 0.03, "x", transform=axes.get_xaxis_transform(), markersize=9, gid="failed", **style)
        axes.annotate("failed", (at, 0.05), xycoords=axes.get_xaxis_transform(), rotation=90, fontsize=8, ha="center")
    elif run.validation_accuracy is not None:
        fill = "none" if run.status != "finished" else "full"
        axes.plot(at, 100 * run.validation_accuracy, marker, fillstyle=fill, markersize=7, gid=run.status, **style)


def _draw_by_epoch(
    axes: Axes, study: StudyResults, measured: dict[str, list[StudyRun]], key: str, scale: float = 1.0
) -> None:
    for index, (name, runs) in enumerate(measured.items()):
        values = ([record.metrics().get(key, np.nan) for record in run.history] for run in runs)
        lines = [scale * np.array(line, dtype=float) for line in values]
        for line in lines:
            axes.plot(np.arange(1, len(line) + 1), line, linewidth=0.8, alpha=0.5, **_style(index))
        if lines:
            shortest = min(map(len, lines))
            mean = np.mean([line[:shortest] for line in lines], axis=0)
            label = study.arm(name).label
            axes.plot(np.arange(1, shortest + 1), mean, linewidth=2.2, label=label, gid=name, **_style(index))
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(True, alpha=0.25)
