"""Fine-tunes the shipped model on the shipped images as a Ray job, on a cluster of its own, and shows what came out.

An interrupted demo is continued; otherwise a new one starts: demo-1, demo-2, ... Everything goes to
$DISTRIBUTED_AUTOLORA_HOME (default: ~/distributed_autolora). Ctrl-C stops the run and all that it started.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from distributed_autolora.cli import common_flags, parse_flags, run_program
from distributed_autolora.config import RunConfig, output_home

ENTRYPOINT = ("python", "jobs/finetune.py", "--recipe", "demo")


@dataclass(frozen=True)
class Flags:
    """None of its own: the values of the run are those of the recipe "demo"."""


def main() -> None:
    """Runs the demo, and ends the process with its exit status."""
    parse_flags(Flags, str(__doc__))
    from distributed_autolora.orchestration.demo import run_demo

    repository = Path(__file__).resolve().parent.parent
    entrypoint = (*ENTRYPOINT, *common_flags())
    sys.exit(run_demo(home=output_home(RunConfig()), working_dir=repository, entrypoint=entrypoint))


if __name__ == "__main__":
    run_program(main)
