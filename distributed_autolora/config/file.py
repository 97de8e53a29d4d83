"""A config as its user writes it: a YAML file that is complete, or that names the recipe it is laid over."""

from pathlib import Path
from typing import Any

from distributed_autolora.config.experiment import ExperimentConfig, read_values
from distributed_autolora.config.recipes import RECIPES, recipe
from distributed_autolora.console import command
from distributed_autolora.errors import UserError

_SHOWN = 4


def read_config_file(path: Path) -> ExperimentConfig:
    """Reads a YAML config; what it leaves out is as in the recipe that it names.

    A complete file, such as a run's config.yaml, is taken as it is, whatever recipe it names.

    Raises:
        UserError: for a missing file, broken YAML, an unknown key, a wrong type, an unknown recipe, or an incomplete
            file without a recipe.
    """
    values = read_values(path)
    config = ExperimentConfig.from_dict(values)  # refuses what is unknown or of another type
    given = {name for group, content in values.items() for name in _names(group, content)}
    missing = [name for name in config.flat() if name not in given]
    if not missing:
        return config
    if "recipe" in values:
        return ExperimentConfig.from_dict(_laid_over(recipe(config.recipe).to_dict(), values))
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    raise UserError(
        f"Config: {path} names no recipe and lacks {', '.join(missing[:_SHOWN])}{more}. Add a line such as `recipe: "
        f"custom` (one of {', '.join(list(RECIPES)[:6])}, ...), which gives what the file leaves out; "
        f"{command('recipes')} copy NAME FILE writes a complete file."
    )


def _names(group: str, content: Any) -> list[str]:
    return [f"{group}.{key}" for key in content] if isinstance(content, dict) else [group]


def _laid_over(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: {**base[key], **values.get(key, {})} if isinstance(base[key], dict) else values.get(key, base[key])
        for key in base
    }
