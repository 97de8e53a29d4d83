"""A run as text: one line an epoch for its log, and the final report, both at most 80 columns wide."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from distributed_autolora.records import (
    NATURAL_VALIDATION,
    ROBUST_VALIDATION,
    accuracy_counts,
    accuracy_names,
    attack_name,
    value,
)
from distributed_autolora.reporting.format import attack_label, compact, duration, event, pixel_fraction
from distributed_autolora.reporting.masking import masking_gap, masking_sentences
from distributed_autolora.reporting.statistics import wilson_interval

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

__all__ = ["duration", "epoch_header", "epoch_line", "result_table"]

WIDTH = 80
_EVENT_WIDTH = 29
_COLUMNS = (("lr", 7), ("loss", 6), ("nat %", 5), ("rob %", 5), ("lam1", 4), ("lam2", 4), ("img/s", 5))


def epoch_header(epochs: int = 99) -> str:
    """Returns the column names above the lines of `epoch_line`: accuracies are on validation images."""
    names = ["epoch".rjust(_epoch_width(epochs)), *(name.rjust(width) for name, width in _COLUMNS)]
    return " ".join(names) + "  time left"


def epoch_line(metrics: dict[str, Any], *, epochs: int, seconds_left: float | None) -> str:
    """Returns one epoch in one line of at most 80 columns.

    Args:
        metrics: the epoch's record in the history.
        epochs: largest number of epochs of the run.
        seconds_left: expected time to the end of training; None: unknown.
    """
    cells = [f"{metrics['epoch']}/{epochs}".rjust(_epoch_width(epochs))]
    texts = _numbers(metrics)
    cells += [text.rjust(width) for text, (_, width) in zip(texts, _COLUMNS, strict=True)]
    left = "" if seconds_left is None else f"{duration(seconds_left)} left"
    line = f"{' '.join(cells)}  {left.rjust(9)}"
    for mark in _marks(metrics):
        if mark and len(line) + 2 + len(mark) <= WIDTH:
            line = f"{line}  {mark}"
            break
    return line.rstrip()


def _marks(metrics: dict[str, Any]) -> list[str]:
    """Returns what to say behind an epoch's numbers: the first that fits."""
    events = [event(metrics), event(metrics, short=True), "halved" if metrics.get("halved") else ""]
    gap = masking_gap(metrics)
    if not gap:
        return events
    texts = (f"masking {gap}", gap)
    return [*(", ".join(filter(None, (happened, text))) for happened in events for text in texts), gap]


def result_table(result: dict[str, Any], history: list[dict[str, Any]]) -> str:
    """Returns the final report of a run, at most 80 columns wide; coloured when standard output is a terminal."""
    return _render(_heading(result), _accuracies(result), "", _sizes(result), *_masking(result), "", _schedule(history))


def _epoch_width(epochs: int) -> int:
    return max(5, 2 * len(str(epochs)) + 1)


def _numbers(metrics: dict[str, Any]) -> list[str]:
    loss, rate = value(metrics, "train/loss/total"), value(metrics, "images_per_second")
    return [
        _lr(metrics),
        "-" if loss is None else f"{loss:.3f}"[:6],
        _per_cent(metrics, NATURAL_VALIDATION),
        _per_cent(metrics, ROBUST_VALIDATION + attack_name(metrics)),
        _decimals(metrics, "natural_weight", 2),
        _decimals(metrics, "kl_weight", 2),
        "-" if rate is None else f"{rate:.0f}" if rate < 1e5 else f"{rate:.0e}",
    ]


def _lr(metrics: dict[str, Any]) -> str:
    lr = value(metrics, "lr")
    return "-" if lr is None else compact(lr)


def _per_cent(metrics: dict[str, Any], key: str) -> str:
    found = value(metrics, key)
    return "-" if found is None else f"{100 * found:.1f}"


def _decimals(metrics: dict[str, Any], key: str, digits: int) -> str:
    found = value(metrics, key)
    return "-" if found is None else f"{found:.{digits}f}"


def _heading(result: dict[str, Any]) -> RenderableType:
    from rich.text import Text

    return Text.assemble((str(result["name"]), "bold"), f"  (recipe {result['recipe']}, seed {result['seed']})\n")


def _accuracies(result: dict[str, Any]) -> RenderableType:
    if result["test"] is None:
        from rich.text import Text

        return Text(f"test split not opened; the epoch chosen on validation is {result['best_epoch']}", style="bold")
    attack = attack_label(result["attack"])
    table = _table(f"on {result['test_images']:,} test images", "natural accuracy, %", f"{attack} accuracy, %")
    final = f"final model\n(chosen on validation, epoch {result['best_epoch']})"
    table.add_row(final, *_with_intervals(result, result["test"]), style="bold")
    if result.get("linear_head"):
        table.add_row("untouched backbone,\nlinear head", *_with_intervals(result, result["linear_head"]))
    return table


def _with_intervals(result: dict[str, Any], part: dict[str, Any]) -> list[str]:
    texts = []
    for name in accuracy_names(result):
        correct, total = accuracy_counts(part, name)
        low, high = wilson_interval(correct, total)
        texts.append(f"{100 * correct / total:.1f}  [{100 * low:.1f}, {100 * high:.1f}]")
    return texts


def _sizes(result: dict[str, Any]) -> RenderableType:
    from rich.text import Text

    seconds = value(result.get("seconds") or {}, "training")
    took = "" if seconds is None else f" in {duration(seconds)}"
    intervals = "" if result["test"] is None else "In brackets: 95 % Wilson intervals. "
    return Text(
        f"{intervals}Perturbations: at most {pixel_fraction(result['epsilon'])} a pixel.\n"
        f"Trained on {result['train_images']:,} images, selected on {result['val_images']:,}:"
        f" {result['stopped_epoch']} epochs{took}.",
        style="dim",
    )


def _masking(result: dict[str, Any]) -> list[RenderableType]:
    from rich.text import Text

    return [Text(text, style="bold red" if place else "dim") for place, text in enumerate(masking_sentences(result))]


def _schedule(history: list[dict[str, Any]]) -> Table:
    """Columns that a method has no values for are left out."""
    attack = attack_name(history[0])
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "lr": _lr,
        "lambda1": lambda metrics: _decimals(metrics, "natural_weight", 3),
        "lambda2": lambda metrics: _decimals(metrics, "kl_weight", 3),
        "branch\nnat. %": lambda metrics: _per_cent(metrics, "natural_branch_accuracy"),
        "val %\nnat.": lambda metrics: _per_cent(metrics, NATURAL_VALIDATION),
        f"val %\n{attack_label(attack)}": lambda metrics: _per_cent(metrics, ROBUST_VALIDATION + attack),
    }
    columns = {name: cell for name, cell in columns.items() if any(cell(metrics) != "-" for metrics in history)}
    table = _table("epoch", *columns, gap=1)
    table.columns[0].justify = "right"
    table.add_column("after the epoch", style="yellow", no_wrap=True)
    chosen = history[-1].get("best_epoch")
    table.caption = "* final model"
    for metrics in history:
        is_chosen = metrics["epoch"] == chosen
        happened = event(metrics)
        if len(happened) > _EVENT_WIDTH:
            happened = event(metrics, short=True)
        cells = [cell(metrics) for cell in columns.values()]
        table.add_row(
            f"{'*' if is_chosen else ''}{metrics['epoch']}", *cells, happened, style="bold" if is_chosen else None
        )
    return table


def _table(first: str, *others: str, gap: int = 2) -> Table:
    from rich.box import Box
    from rich.table import Table

    rule = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
    table = Table(
        box=rule, header_style="bold cyan", show_edge=False, padding=(0, gap - 1, 0, 0), caption_justify="left"
    )
    table.add_column(first, vertical="bottom")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _render(*parts: RenderableType) -> str:
    from rich.console import Console

    text = io.StringIO()
    console = Console(file=text, width=WIDTH, force_terminal=sys.stdout.isatty(), highlight=False, emoji=False)
    for part in parts:
        console.print(part, markup=False)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
