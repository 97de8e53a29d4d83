"""A run has a name and an identity, and one folder that only one live process holds."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from dataclasses import dataclass, replace
from itertools import count, takewhile
from pathlib import Path
from typing import IO, Any

import yaml

from distributed_autolora.config import ExperimentConfig, output_home
from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.folder_lock import lock_folder
from distributed_autolora.orchestration.whole_files import (
    read_json,
    unseal,
    without_secrets,
    write_json,
    write_sealed,
    write_text,
)

__all__ = [
    "RunFolder",
    "check_writable",
    "config_text",
    "find_run",
    "is_precision_open",
    "newest_run",
    "next_run",
    "read_config",
    "run_name",
    "with_name",
    "with_precision",
    "write_json",
    "write_text",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MIN_FREE_BYTES = 200 * 2**20
_PRECISIONS = ("bfloat16", "float32")


@dataclass
class RunFolder:
    """The folder of one run.

    Attributes:
        path: absolute folder.
    """

    path: Path
    _lock: IO[str] | None = None

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.path.name

    @property
    def history_file(self) -> Path:
        """Records of all epochs so far, JSON."""
        return self.path / "history.json"

    def exists(self) -> bool:
        """Tells whether the run was created."""
        return (self.path / "run.json").is_file()

    def is_finished(self) -> bool:
        """Tells whether the run has its result."""
        return (self.path / "result.json").is_file()

    def read(self, name: str) -> Any:
        """Returns the content of one of the folder's JSON files.

        Raises:
            UserError: when it is missing or corrupt.
        """
        try:
            return read_json(self.path / name)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path / name} cannot be read ({error}). Restore the file, or start afresh with --fresh."
            ) from None

    def history(self) -> list[dict[str, Any]]:
        """Returns the records of all epochs so far."""
        return list(self.read("history.json")) if self.history_file.is_file() else []

    def config(self) -> ExperimentConfig:
        """Returns the effective config that the run was created with."""
        return read_config(self.path / "config.yaml")

    def create(self, config: ExperimentConfig, name: str | None = None) -> None:
        """Writes the effective config and the run's identity.

        Args:
            config: the effective config.
            name: the name without a number, of which this folder is a repeat; None: the folder's own.
        """
        write_sealed(self.path / "config.yaml", config.to_dict(), _yaml)
        identity = {"name": name or self.name, "config_digest": config.digest(), "seed": config.seed}
        write_json(self.path / "run.json", identity)

    def repeats(self, name: str) -> bool:
        """Tells whether this run is one of a name's, and not of another name that ends in a number.

        One that cannot be read is taken for one: its number is not free.
        """
        try:
            return bool(self.read("run.json").get("name", name) == name)
        except UserError:
            return True

    def hold(self) -> None:
        """Claims the run for this process until it ends.

        Raises:
            UserError: when another live process holds it, or the folder cannot be written.
        """
        check_writable(self.path)
        self._lock = lock_folder(
            self.path,
            what=f'Run "{self.name}"',
            otherwise="start another with --fresh or --run.name",
            elsewhere="--run.output",
        )

    def release(self) -> None:
        """Gives the run back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def check_writable(folder: Path, *, flag: str = "--run.output") -> None:
    """Makes the folder if need be, and checks that it can be written.

    Args:
        folder: the folder.
        flag: the flag that names another place.

    Raises:
        UserError: when it cannot, or its disk is nearly full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"0")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(
            f"The output folder {folder} cannot be written ({error.strerror}). Choose another with {flag} "
            "or $DISTRIBUTED_AUTOLORA_HOME."
        ) from None
    if free < _MIN_FREE_BYTES:
        raise UserError(
            f"The disk of {folder} has less than {_MIN_FREE_BYTES >> 20} MiB free: "
            f"free some space, or choose another {flag}."
        )


def config_text(config: ExperimentConfig, *, with_secrets: bool = True) -> str:
    """Returns the YAML that `read_config` and --config take.

    Args:
        config: the effective config.
        with_secrets: whether to keep the secrets of its URIs.
    """
    return _yaml(config.to_dict() if with_secrets else without_secrets(config.to_dict()))


def _yaml(values: dict[str, Any]) -> str:
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


def run_name(config: ExperimentConfig) -> str:
    """Returns the run's name without a number: given, or recipe, config digest and seed.

    Raises:
        UserError: for a given name that cannot be a folder's.
    """
    name = config.run.name or f"{config.recipe}-{config.digest()[:8]}-seed{config.seed}"
    if not _NAME.fullmatch(name):
        raise UserError(f'run.name is "{name}": use letters, digits, ".", "_" and "-", 100 at most.')
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
    """Returns the folders NAME-2, NAME-3, ... as far as they exist, repeats of NAME or runs of that very name."""
    folders = (RunFolder(home / "runs" / f"{name}-{number}") for number in count(2))
    return list(takewhile(RunFolder.exists, folders))


def find_run(config: ExperimentConfig) -> tuple[ExperimentConfig, RunFolder] | None:
    """Returns the existing run that this config continues, and the config with the run's own precision.

    Args:
        config: with its data and weights digests filled in.

    Raises:
        UserError: when the run was created with another config.
    """
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
            "Give another --run.name, or the same config."
        )
    return None


def is_precision_open(config: ExperimentConfig) -> bool:
    """Tells whether a number format is still to be chosen for the hardware."""
    return "auto" in (config.compute.attack_precision, config.compute.train_precision)


def with_precision(config: ExperimentConfig, precision: str) -> ExperimentConfig:
    """Returns the config with this number format wherever it leaves the choice to the hardware."""
    values = config.to_dict()
    compute = values["compute"]
    values["compute"] = {name: precision if value == "auto" else value for name, value in compute.items()}
    return type(config).from_dict(values)


def with_name(config: ExperimentConfig, folder: RunFolder) -> ExperimentConfig:
    """Returns the config with the folder's name as the run's."""
    return replace(config, run=replace(config.run, name=folder.name))


def _differences(there: ExperimentConfig, here: ExperimentConfig) -> str:
    old, new = there.flat(), here.flat()
    changed = [
        key
        for key in new
        if old[key] != new[key]
        and not key.startswith(("run.", "scaling.", "recipe"))
        and key not in ("data.path", "data.task", "model.weights", "model.allow_pickle")
    ]
    # A format left to the hardware is the difference only where nothing else is.
    changed = [key for key in changed if new[key] != "auto"] or changed
    named = [f"{key} is {old[key]} there and {new[key]} here" for key in changed[:4]]
    return "; ".join(named) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
