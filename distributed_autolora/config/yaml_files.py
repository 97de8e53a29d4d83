"""YAML files of an experiment."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.errors import UserError
from distributed_autolora.files.json_files import (
    unseal,
    without_secrets,
)


def config_text(config: ExperimentConfig, *, with_secrets: bool = True) -> str:
    """Returns the YAML that `read_config` and --config take.

    Args:
        config: the effective config.
        with_secrets: whether to keep the secrets of its URIs.
    """
    return yaml_text(config.to_dict() if with_secrets else without_secrets(config.to_dict()))


def yaml_text(values: dict[str, Any]) -> str:
    # One line each, as --config and a reader's search find them.
    return str(yaml.safe_dump(values, sort_keys=False, width=math.inf, allow_unicode=True))


def read_config(path: Path) -> ExperimentConfig:
    """Reads a YAML config; that of a run with the secrets of its URIs, for those who may read them.

    Raises:
        UserError: for a missing file, broken YAML, an unknown key or a wrong type.
    """
    try:
        values = unseal(path.expanduser().parent, yaml.safe_load(path.expanduser().read_text()))
    except OSError as error:
        raise UserError(f"Config: {path} cannot be read ({error.strerror}). Check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"Config: {path} is no YAML ({' '.join(str(error).split())}). Correct it.") from None
    return ExperimentConfig.from_dict(values or {})
