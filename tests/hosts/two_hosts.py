"""Trains with two workers on two hosts, cuts the link between them and puts it back, and compares what comes out.

    sudo .venv/bin/python tests/hosts/two_hosts.py --output docs/results/two-hosts

The hosts are network namespaces of this machine with addresses of their own. Nothing outside them is touched, and all
is removed at the end. Ends with status 1 when a run came to other results than the uninterrupted one.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a plain checkout has no package "tests"

from distributed_autolora.cli import run_program
from distributed_autolora.errors import RunFailedError
from tests.hosts.comparing import compare
from tests.hosts.report import Played, as_json, as_markdown
from tests.hosts.scenarios import SCENARIOS, play, write_inputs


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What to play, and where to write."""

    output: Path | None = None
    """Folder for report.md and two_hosts.json; None: the report is only printed."""
    only: tuple[str, ...] = ()
    """Names of scenarios to play beside the uninterrupted run; none: all."""
    train_images: int = 600
    """Images of the synthetic task: an epoch must last some seconds, so that it can be cut in its middle."""
    keep: bool = False
    """Leave the runs' folders and Ray's logs where they are, and print where."""


def main() -> None:
    """Plays the scenarios one after another."""
    flags = tyro.cli(Annotated[Flags, tyro.conf.arg(name="")], description=__doc__)
    folder = Path(tempfile.mkdtemp(prefix="hosts-", dir="/tmp"))  # short: UNIX sockets live in there
    try:
        played = _play_all(flags, folder)
    finally:
        if flags.keep:
            print(f"Everything is in {folder}.", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    report = as_markdown(played, flags.train_images)
    print(report)
    if flags.output is not None:
        flags.output.mkdir(parents=True, exist_ok=True)
        (flags.output / "report.md").write_text(report)
        (flags.output / "two_hosts.json").write_text(json.dumps(as_json(played), indent=2) + "\n")
    failed = [each.scenario.name for each in played if not each.is_good]
    if failed:
        raise RunFailedError(f"Not as the uninterrupted run: {', '.join(failed)}.")


def _play_all(flags: Flags, folder: Path) -> list[Played]:
    write_inputs(folder, flags.train_images)
    played: list[Played] = []
    for scenario in SCENARIOS:
        if played and flags.only and scenario.name not in flags.only:
            continue
        print(f"{scenario.name} ...", file=sys.stderr, flush=True)
        outcome = play(scenario, folder)
        is_first = not played
        verdicts = compare(folder / SCENARIOS[0].name, folder / scenario.name) if outcome.status == 0 else []
        played.append(Played(scenario, outcome, verdicts))
        if is_first and outcome.status != 0:
            raise RunFailedError(f"The uninterrupted run ended with status {outcome.status}: {outcome.output}")
    return played


if __name__ == "__main__":
    run_program(main, when_interrupted="The hosts are gone.")
