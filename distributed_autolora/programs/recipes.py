"""Lists the recipes (named configs), prints one as YAML, or writes it to a file that --config takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from distributed_autolora.cli import parse_one_of
from distributed_autolora.config.experiment import config_text
from distributed_autolora.config.recipes import RECIPES, recipe
from distributed_autolora.console import command, print_line
from distributed_autolora.errors import UserError
from distributed_autolora.files import write_text


@dataclass(frozen=True)
class List:
    """List all recipes."""


@dataclass(frozen=True)
class Show:
    """Print a recipe as YAML."""

    name: Annotated[str, tyro.conf.Positional]
    """Name of the recipe."""


@dataclass(frozen=True)
class Copy(Show):
    """Write a recipe to a new YAML file."""

    file: Annotated[Path, tyro.conf.Positional]
    """File to write; it must not exist."""


ACTIONS: dict[str, type[List | Show]] = {"ls": List, "show": Show, "copy": Copy}


def main() -> None:
    """Reads the command line, and lists, prints or writes recipes."""
    action = parse_one_of(ACTIONS, str(__doc__))
    if isinstance(action, List):
        print("\n".join(_line(name) for name in RECIPES))
        return
    text = config_text(recipe(action.name))
    if not isinstance(action, Copy):
        print(text, end="")
        return
    if action.file.exists():
        raise UserError(f"{action.file} exists already: give another file.")
    write_text(action.file, text)
    is_pretraining, is_shipped = action.name.startswith("pretrain"), recipe(action.name).model.weights is not None
    program, weights = ("pretrain", "") if is_pretraining else ("finetune", " --weights WEIGHTS")
    own = "" if is_shipped else f" --data DATA{weights}"
    print_line(f"Next: {command(program)} --config {action.file}{own}")


def _line(name: str) -> str:
    config = recipe(name)
    rule = f" {config.schedule.rule}" if config.schedule.name == "automatic" else ""
    parts = (config.method.name, config.model.backbone, config.data.task, config.schedule.name + rule)
    return f"{name:<28}" + "".join(f"{part:<20}" for part in parts) + f"lr {config.optimization.lr:g}"
