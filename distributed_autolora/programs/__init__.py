"""The programs: `autolora NAME ...`, or `python jobs/NAME.py ...` in a clone or a Ray job."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import NoReturn

from distributed_autolora import __version__
from distributed_autolora.cli import COMMON_FLAGS, COMMON_HELP, run_program
from distributed_autolora.errors import UserError
from distributed_autolora.records.reader import nearest

PROGRAMS = {
    "finetune": "fine-tune a pre-trained network on labelled images",
    "evaluate": "evaluate a model by adversarial attacks",
    "compare": "compare ways of fine-tuning: a study",
    "pretrain": "pre-train a backbone adversarially",
    "data prepare": "write images as the Parquet files that the other programs read",
    "data check": "check such files",
    "doctor": "check a cluster before a run",
    "demo": "fine-tune the shipped model on the shipped images",
    "recipes": "list the recipes (ls), print one (show NAME), or write it to a YAML file (copy NAME FILE)",
}
"""Each program and what it does; its module here has the same name with "_"."""


def main() -> NoReturn:
    """Runs the program that the first words of the command line name, and ends the process: the command `autolora`."""
    words = sorted(sys.argv[1:], key=lambda word: word in COMMON_FLAGS)  # their place does not matter
    for name in (" ".join(words[:2]), *words[:1]):
        if name in PROGRAMS:
            sys.argv[:] = [f"autolora {name}", *words[len(name.split()) :]]
            run(name)
    run_program(_explain)


def run(name: str) -> NoReturn:
    """Runs one of `PROGRAMS` with the rest of the command line, and ends the process."""
    program = import_module(f"{__name__}.{name.replace(' ', '_')}")
    if interrupted := getattr(program, "WHEN_INTERRUPTED", None):
        run_program(program.main, when_interrupted=interrupted)
    run_program(program.main)


def _explain() -> None:
    """Prints the version or the programs; refuses every other command line."""
    words = sys.argv[1:]
    if words == ["--version"]:
        print(f"distributed-autolora {__version__}")
        return
    group = {name: text for name, text in PROGRAMS.items() if name.split()[0] == words[0]} if words else {}
    if words and not set(words) & {"-h", "--help"} and words != ["help"] and (not group or len(words) > 1):
        typed = " ".join(words[:2] if group else words[:1])
        raise UserError(f'There is no program "{typed}".{nearest(typed, list(PROGRAMS))} autolora --help lists them.')
    width = max(map(len, PROGRAMS))
    lines = [f"  autolora {name:<{width}}  {text}" for name, text in (group or PROGRAMS).items()]
    lines = ["Adversarially robust fine-tuning of vision models.", "", *lines, f"  autolora {'--version':<{width}}"]
    print("\n".join([*lines, "", "Each takes --help.", COMMON_HELP]))
