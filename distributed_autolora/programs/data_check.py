"""Checks the Parquet files of a task: refuses what cannot be used, warns of what is unusual."""

from __future__ import annotations

from distributed_autolora.cli import parse_flags
from distributed_autolora.data.preparation.flags import Check
from distributed_autolora.programs.data_prepare import check


def main() -> None:
    """Checks every image of a task and prints what its files hold."""
    check(parse_flags(Check, str(__doc__)).folder)
