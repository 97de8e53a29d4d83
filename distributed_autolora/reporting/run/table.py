"""A run as text: one line an epoch for its log, and the final report, both at most 80 columns wide."""

import io
import sys
from collections.abc import Callable, Sequence

from rich.box import Box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from distributed_autolora.errors import counted
from distributed_autolora.records import EpochRecord, RunResult
from distributed_autolora.reporting.format import (
    NONE,
    attack_label,
    compact,
    duration,
    event,
    per_cent,
    threat_text,
    with_interval,
)
from distributed_autolora.reporting.masking import masking_sentences

WIDTH = 80
_EVENT_WIDTH = 29
_COLUMNS = (("lr", 7), ("loss", 6), ("nat %", 5), ("rob %", 5), ("lam1", 4), ("lam2", 4), ("img/s", 5))


def epoch_header(epochs: int = 99) -> str:
    """Returns the column names above the lines of `epoch_line`: accuracies are on validation images."""
    names = ["epoch".rjust(_epoch_width(epochs)), *(name.rjust(width) for name, width in _COLUMNS)]
    return " ".join(names) + "  time left"


def epoch_line(record: EpochRecord, *, epochs: int, seconds_left: float | None) -> str:
    """Returns one epoch in one line of at most 80 columns."""
    cells = [f"{record.epoch}/{epochs}".rjust(_epoch_width(epochs))]
    cells += [text.rjust(width) for text, (_, width) in zip(_numbers(record), _COLUMNS, strict=True)]
    left = "" if seconds_left is None else f"{duration(seconds_left)} left"
    line = f"{' '.join(cells)}  {left.rjust(9)}"
    for mark in _marks(record):
        if mark and len(line) + 2 + len(mark) <= WIDTH:
            line = f"{line}  {mark}"
            break
    return line.rstrip()


def reading_warning(record: EpochRecord) -> str:
    """Returns a warning for an epoch whose steps waited for images a fifth of their time or more; else ""."""
    waited = record.phase_seconds["data"]
    computed = record.phase_seconds["attack"] + record.phase_seconds["step"]
    if waited < (waited + computed) / 5:
        return ""
    rate, share = record.images_per_second, waited / (waited + computed)
    return (
        f"epoch {record.epoch} waited for images {per_cent(share)} % of its steps' time: the CPUs deliver "
        f"{rate:.0f} images/s, attack and step could take {rate / max(1 - share, 1e-9):.0f}. "
        "Raise --cpus-per-worker, or put the cache on a faster disk (scaling.cache)."
    )


def _marks(record: EpochRecord) -> list[str]:
    """Returns the marks that may follow an epoch's numbers: the first that fits is printed."""
    events = [event(record), event(record, short=True), "halved" if record.halved else ""]
    if record.masking is None:
        return events
    gap = f"gap {100 * record.masking.gap:.1f} %"
    texts = (f"masking {gap}", gap)
    return [*(", ".join(filter(None, (happened, text))) for happened in events for text in texts), gap]


def result_table(result: RunResult, history: Sequence[EpochRecord]) -> str:
    """Returns the final report of a run, at most 80 columns wide; coloured when standard output is a terminal."""
    heading = Text.assemble((result.name, "bold"), f"  (recipe {result.recipe}, seed {result.seed})\n")
    sentences = masking_sentences(result)
    masking = [Text(text, style="bold red" if text.startswith("Warning") else "dim") for text in sentences]
    return _render(heading, _accuracies(result), "", _sizes(result), *masking, "", _schedule(history))


def _epoch_width(epochs: int) -> int:
    return max(5, 2 * len(str(epochs)) + 1)


def _numbers(record: EpochRecord) -> list[str]:
    loss, rate = record.losses["total"], record.images_per_second
    return [
        compact(record.lr),
        f"{loss:.3f}"[:6],
        per_cent(record.natural.accuracy),
        per_cent(record.robust.accuracy),
        _decimals(record.natural_weight, 2),
        _decimals(record.kl_weight, 2),
        f"{rate:.0f}" if rate < 1e5 else f"{rate:.0e}",
    ]


def _decimals(number: float | None, digits: int) -> str:
    return NONE if number is None else f"{number:.{digits}f}"


def _accuracies(result: RunResult) -> RenderableType:
    if result.test is None:
        return Text(f"test split not opened; the epoch chosen on validation is {result.best_epoch}", style="bold")
    attack = attack_label(result.attack)
    table = _table(f"on {result.test_images:,} test images", "natural accuracy, %", f"{attack} accuracy, %")
    final = f"final model\n(chosen on validation, epoch {result.best_epoch})"
    other = "untouched backbone,\nlinear head"
    for name, part, style in ((final, result.test, "bold"), (other, result.linear_head, None)):
        if part is not None:
            table.add_row(name, *(with_interval(count, "  ") for count in (part.natural, part.robust)), style=style)
    return table


def _sizes(result: RunResult) -> RenderableType:
    intervals = "" if result.test is None else "In brackets: 95 % Wilson intervals. "
    return Text(
        f"{intervals}Perturbations: {threat_text(result.norm, result.epsilon).removesuffix(' (L-infinity)')}.\n"
        f"Trained on {result.train_images:,} images, selected on {result.val_images:,}:"
        f" {counted(result.stopped_epoch, 'epoch')} in {duration(result.cost.seconds)}.",
        style="dim",
    )


def _schedule(history: Sequence[EpochRecord]) -> Table:
    """Columns that a method has no values for are left out."""
    columns: dict[str, Callable[[EpochRecord], str]] = {
        "lr": lambda record: compact(record.lr),
        "lambda1": lambda record: _decimals(record.natural_weight, 3),
        "lambda2": lambda record: _decimals(record.kl_weight, 3),
        "branch\nnat. %": lambda record: per_cent(record.natural_branch.accuracy) if record.natural_branch else NONE,
        "val %\nnat.": lambda record: per_cent(record.natural.accuracy),
        f"val %\n{attack_label(history[0].attack)}": lambda record: per_cent(record.robust.accuracy),
    }
    columns = {name: cell for name, cell in columns.items() if any(cell(record) != NONE for record in history)}
    table = _table("epoch", *columns, gap=1)
    table.columns[0].justify = "right"
    table.add_column("after the epoch", style="yellow", no_wrap=True)
    chosen = history[-1].best_epoch
    table.caption = "* final model"
    for record in history:
        mark, style = ("*", "bold") if record.epoch == chosen else ("", None)
        happened = event(record, short=len(event(record)) > _EVENT_WIDTH)
        table.add_row(f"{mark}{record.epoch}", *(cell(record) for cell in columns.values()), happened, style=style)
    return table


def _table(first: str, *others: str, gap: int = 2) -> Table:
    rule = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
    table = Table(
        box=rule, header_style="bold cyan", show_edge=False, padding=(0, gap - 1, 0, 0), caption_justify="left"
    )
    table.add_column(first, vertical="bottom")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _render(*parts: RenderableType) -> str:
    text = io.StringIO()
    console = Console(
        file=text, width=WIDTH, force_terminal=sys.stdout.isatty(), highlight=False, emoji=False, force_jupyter=False
    )
    for part in parts:
        console.print(part, markup=False)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
