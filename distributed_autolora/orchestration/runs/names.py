"""The run of a config: its name, its number among the repeats of that name, and the run that it continues."""

import re
from dataclasses import replace
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from distributed_autolora.config import ExperimentConfig, output_home
from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.runs.folder import RunFolder

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PRECISIONS = ("bfloat16", "float32")


def run_name(config: ExperimentConfig) -> str:
    """Returns the run's name without a number: given, or recipe, config digest and seed."""
    name = config.run.name or f"{config.recipe}-{config.digest()[:8]}-seed{config.seed}"
    if not _NAME.fullmatch(name):
        raise UserError(f'--name is "{name}": use letters, digits, ".", "_" and "-", 100 at most.')
    return name


def newest_run(home: Path, name: str) -> RunFolder:
    """Returns the highest-numbered run of a name: NAME, NAME-2, NAME-3, ..."""
    repeats = [folder for folder in _numbered(home, name) if folder.repeats(name)]
    return repeats[-1] if repeats else RunFolder(home / "runs" / name)


def next_run(home: Path, name: str) -> RunFolder:
    """Returns the first number of a name that has no run yet."""
    newest = newest_run(home, name)
    return RunFolder(home / "runs" / f"{name}-{len(_numbered(home, name)) + 2}") if newest.exists() else newest


def _numbered(home: Path, name: str) -> list[RunFolder]:
    folders = (RunFolder(home / "runs" / f"{name}-{number}") for number in count(2))
    return list(takewhile(RunFolder.exists, folders))


def find_run(config: ExperimentConfig) -> tuple[ExperimentConfig, RunFolder] | None:
    """Returns the run that this config (digests filled in) continues, and the config with the run's precision."""
    home = output_home(config.run)
    choices = _PRECISIONS if is_precision_open(config) else (config.compute.attack_precision,)
    folder = None
    for precision in choices:
        chosen = with_precision(config, precision)
        folder = newest_run(home, run_name(chosen))
        if not folder.exists():
            continue
        known = folder.read("run.json")
        if (known["config_digest"], known["seed"]) == (chosen.digest(), chosen.seed):
            return chosen, folder
    if folder is not None and folder.exists():
        raise UserError(
            f'Run "{folder.name}" exists with another config ({_differences(folder.config(), config)}). '
            "Give another --name, or the same config."
        )
    return None


def is_precision_open(config: ExperimentConfig) -> bool:
    """Tells whether a number format is still to be chosen for the hardware."""
    return "auto" in (config.compute.attack_precision, config.compute.train_precision)


def with_precision(config: ExperimentConfig, precision: str) -> ExperimentConfig:
    """Returns the config with this number format wherever it leaves the choice to the hardware."""
    chosen: dict[str, Any] = {name: precision for name, value in vars(config.compute).items() if value == "auto"}
    return replace(config, compute=replace(config.compute, **chosen))


def _differences(there: ExperimentConfig, here: ExperimentConfig) -> str:
    changed = there.differences(here)
    # A format left to the hardware is the difference only where nothing else is.
    changed = {key: values for key, values in changed.items() if values[1] != "auto"} or changed
    named = [f"{key} is {old} there and {new} here" for key, (old, new) in list(changed.items())[:4]]
    return "; ".join(named) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
