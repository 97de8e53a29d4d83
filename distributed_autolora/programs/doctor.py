"""Checks a cluster before money is spent on it: give it the command line of the run that is to be started."""

from __future__ import annotations

from distributed_autolora.cli import parse_training_flags

WHEN_INTERRUPTED = "The checks write nothing that is needed; start them again."


def main() -> None:
    """Prints one line a check: PASS, WARN or FAIL, the figure, and what to do."""
    flags = parse_training_flags(
        "Checks a Ray cluster for a run: takes the flags of `finetune` (but --fresh, --evaluate, --in-process). "
        "On a local Ray by default; inside a submitted job, on its cluster. Exit status: 0 nothing fails, 1 a check "
        "fails, 2 refused input.",
        default_recipe="demo",
    )
    from distributed_autolora.orchestration.cluster_check.report import report

    report(flags.experiment)
