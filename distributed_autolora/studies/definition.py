"""What a study is: named arms of one comparison, each a complete config with or without a search."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.records import Settings


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of a comparison."""

    id: str
    """Unique in its study: "twins", "autolora-rank-8"; names of runs and files are made of it."""
    label: str
    """Shown in tables and figures: "TWINS", "AutoLoRa, rank 8"."""
    config: ExperimentConfig
    """Everything but the seed and what the grid replaces."""
    grid: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Dotted config keys and the values to try; empty: no search."""
    reference: str | None = None
    """Id of the arm that this one is compared with; None: the study's reference."""

    def points(self) -> list[Settings]:
        """Returns all points of the grid, the last key moving fastest; one empty point without a search."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A named comparison."""

    name: str
    """Key in `STUDIES`."""
    title: str
    """Heading of the report; claims no result."""
    paper_tables: tuple[str, ...]
    """Tables and figures of the paper that the study is the like of; empty for none."""
    arms: tuple[Arm, ...]
    """In the order of the report."""
    reference: str
    """Id of the arm that the others are compared with."""

    def arm(self, arm_id: str) -> Arm:
        """Returns the arm of an id."""
        return next(arm for arm in self.arms if arm.id == arm_id)


def with_settings(config: ExperimentConfig, settings: Mapping[str, object]) -> ExperimentConfig:
    """Returns the config with dotted keys replaced.

    Raises:
        UserError: for a key that no config has, or a value of the wrong type.
    """
    values = config.to_dict()
    for key, value in settings.items():
        group, _, name = key.rpartition(".")
        (values[group] if group else values)[name] = value
    return ExperimentConfig.from_dict(values)
