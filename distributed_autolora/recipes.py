"""Another name of `distributed_autolora.config.recipes`."""

from distributed_autolora.config.recipes import RECIPES, recipe

__all__ = ["RECIPES", "recipe"]
