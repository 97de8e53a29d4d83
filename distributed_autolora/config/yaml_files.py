"""An experiment as a YAML file."""

from __future__ import annotations

import math
from pathlib import Path

import yaml

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.errors import UserError


def config_text(config: ExperimentConfig) -> str:
    """Returns the YAML that `read_config` and --config take, one line for each value."""
    return str(yaml.safe_dump(config.to_dict(), sort_keys=False, width=math.inf, allow_unicode=True))


def read_config(path: Path) -> ExperimentConfig:
    """Reads a YAML config.

    Raises:
        UserError: for a missing file, broken YAML, an unknown key or a wrong type.
    """
    try:
        values = yaml.safe_load(path.expanduser().read_text())
    except OSError as error:
        raise UserError(f"Config: {path} cannot be read ({error.strerror}). Check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"Config: {path} is not YAML ({' '.join(str(error).split())}). Correct it.") from None
    return ExperimentConfig.from_dict(values or {})
