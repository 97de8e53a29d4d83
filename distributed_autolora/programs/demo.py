"""Fine-tunes the shipped model on the shipped images as a Ray job, on a cluster of its own, and shows what came out.

An interrupted demo is continued; otherwise a new one starts: demo-1, demo-2, ... Everything goes to
$DISTRIBUTED_AUTOLORA_HOME (default: ~/distributed_autolora). Ctrl-C stops the run and all that it started.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from distributed_autolora.cli import common_flags, parse_flags
from distributed_autolora.config import RunConfig, output_home
from distributed_autolora.console import job_file


@dataclass(frozen=True)
class Flags:
    """None of its own: the values of the run are those of the recipe "demo"."""


def main() -> None:
    """Runs the demo, and ends the process with its exit status."""
    parse_flags(Flags, str(__doc__))
    from distributed_autolora.orchestration.demo import run_demo

    typed = job_file()
    repository = typed.parent.parent if typed else None
    program = ["python", "jobs/finetune.py"] if typed else [sys.executable, "-m", "distributed_autolora", "finetune"]
    entrypoint = (*program, "--recipe", "demo", *common_flags())
    sys.exit(run_demo(home=output_home(RunConfig()), working_dir=repository, entrypoint=entrypoint))
