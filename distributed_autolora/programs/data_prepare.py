"""Writes labelled images as the Parquet files that every other program reads, and checks such files."""

from __future__ import annotations

import shlex

from distributed_autolora.cli import parse_one_of
from distributed_autolora.console import command, print_line
from distributed_autolora.data.preparation.flags import SOURCES, Check

WHEN_INTERRUPTED = "No file was left half-written."


def main() -> None:
    """Reads the command line, writes or checks the files and prints what they hold."""
    flags = parse_one_of(SOURCES, str(__doc__))
    if isinstance(flags, Check):
        check(flags.folder)
        return
    from distributed_autolora.data.preparation.prepare import prepare

    prepared = prepare(flags)
    print(prepared.table())
    weights = f"{command('finetune')} --recipe {flags.recipe} --weights WEIGHTS --data"
    print_line(f"\nNext: {weights} {shlex.quote(prepared.output)}")


def check(folder: str) -> None:
    """Prints what a folder holds and refuses what cannot be trained on."""
    from distributed_autolora.data.dataset_check import examine_task
    from distributed_autolora.data.dataset_check_report import report_text

    report = examine_task(folder)
    print(report_text(report))
    report.usable()
