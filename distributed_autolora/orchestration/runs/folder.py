"""A run has one folder, which only one live process holds."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.config.experiment import config_text, read_config
from distributed_autolora.console import switch
from distributed_autolora.errors import UserError
from distributed_autolora.files import acquire_folder, read_json, write_json, write_text
from distributed_autolora.records import EpochRecord, RunResult, from_json, history_from_json, history_to_json, to_json

_MIN_FREE_BYTES = 200 * 2**20


@dataclass
class RunFolder:
    """The folder of one run."""

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
                f"{self.path / name} cannot be read ({error}). "
                f"Restore the file, or start afresh with {switch('fresh')}."
            ) from None

    def history(self) -> list[EpochRecord]:
        """Returns the records of all epochs so far.

        Raises:
            UserError: for a file that is corrupt, or of version 0.1.
        """
        if not self.history_file.is_file():
            return []
        return history_from_json(self.read("history.json"), str(self.history_file))

    def write_history(self, history: Sequence[EpochRecord]) -> None:
        """Replaces the records of all epochs so far."""
        write_json(self.history_file, history_to_json(history))

    def result(self) -> RunResult:
        """Returns the result of the finished run.

        Raises:
            UserError: for a file that is missing, corrupt, or of version 0.1.
        """
        return from_json(RunResult, self.read("result.json"), str(self.path / "result.json"))

    def write_result(self, result: RunResult) -> None:
        """Writes the result; from then on the run is finished."""
        write_json(self.path / "result.json", to_json(result))

    def config(self) -> ExperimentConfig:
        """Returns the effective config that the run was created with."""
        return read_config(self.path / "config.yaml")

    def create(self, config: ExperimentConfig, name: str | None = None) -> None:
        """Writes the effective config and the run's identity; `name` is its name without a repeat's number."""
        write_text(self.path / "config.yaml", config_text(config))
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

    def acquire(self) -> None:
        """Claims the run for this process until it ends.

        Raises:
            UserError: when another live process holds it, or the folder cannot be written.
        """
        check_writable(self.path)
        self._lock = acquire_folder(
            self.path,
            what=f'Run "{self.name}"',
            otherwise=f"start another with {switch('fresh')} or another name",
            elsewhere="--output",
        )

    def release(self) -> None:
        """Gives the run back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def check_writable(folder: Path) -> None:
    """Makes the folder if need be, and checks that it can be written.

    Raises:
        UserError: when it cannot, or its disk is nearly full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Where this process is killed, the next one removes the file.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-", suffix=f".{os.getpid()}") as file:
            file.write(b"0")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(
            f"The output folder {folder} cannot be written ({error.strerror}). Choose another with --output "
            "or $DISTRIBUTED_AUTOLORA_HOME."
        ) from None
    if free < _MIN_FREE_BYTES:
        raise UserError(
            f"The disk of {folder} has less than {_MIN_FREE_BYTES >> 20} MiB free: "
            "free some space, or choose another --output."
        )
