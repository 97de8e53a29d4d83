"""Which failures of a worker a restart may cure, and the errors that end a run.

Nothing here imports PyTorch: Ray Train's controller does without it.
"""

from __future__ import annotations

import re
import traceback
from typing import Any

from ray.exceptions import RayActorError
from ray.train import ControllerError, TrainingFailedError, UserCallback

from distributed_autolora.errors import RunFailedError, StorageError, UserError, first_line
from distributed_autolora.files import write_text
from distributed_autolora.orchestration.runs.folder import RunFolder

_TRACEBACK = "error.txt"

# What PyTorch raises on the workers that are left when another one is gone, or when a device fails.
_LOST_CLASSES = ("DistError", "AcceleratorError")
_LOST_WORDS = re.compile(r"gloo|nccl|c10d|TCPStore|\bpeer\b|connection|cuda|cudnn|cublas|nvml", re.IGNORECASE)
# A label out of range, and a batch that is too large: both would come again.
_REPEATABLE_WORDS = re.compile(r"device-side assert|out of memory", re.IGNORECASE)


class RepeatableErrors(UserCallback):  # type: ignore[misc]
    """Ends a run at once, instead of restarting its workers, for an error that would come again."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raises the first such error; Ray Train ends a run whose callback fails."""
        for error in worker_exceptions.values():
            if not may_be_cured_by_a_restart(error):
                raise error


def may_be_cured_by_a_restart(error: BaseException) -> bool:
    """Tells a lost process, connection, device or disk from an error of input or program, which would come again."""
    if isinstance(error, OSError | StorageError) or type(error).__module__.partition(".")[0] == "ray":
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    if (type(error) is not RuntimeError and not names & {*_LOST_CLASSES}) or _REPEATABLE_WORDS.search(str(error)):
        return False
    return bool(names & {*_LOST_CLASSES}) or _LOST_WORDS.search(str(error)) is not None


def user_error_of(error: TrainingFailedError | RayActorError, folder: RunFolder) -> UserError:
    """Returns the user error that ended a run, or a `RunFailedError`, whose traceback goes into the run's folder."""
    rank, cause = _cause(error)
    if isinstance(cause, UserError):
        return cause
    write_text(folder.path / _TRACEBACK, "".join(traceback.format_exception(cause)))
    who = "controller" if cause is error else f"worker {rank}" if rank is not None else type(cause).__name__
    return RunFailedError(
        f"Training failed ({who}: {first_line(cause)}). The traceback is in {folder.path / _TRACEBACK}; the same "
        "command resumes from the last checkpoint."
    )


def remove_error(folder: RunFolder) -> None:
    """Removes the traceback of an earlier failure from a run that has finished."""
    (folder.path / _TRACEBACK).unlink(missing_ok=True)


def _cause(error: TrainingFailedError | RayActorError) -> tuple[int | None, BaseException]:
    if isinstance(error, ControllerError):
        return None, error.controller_failure
    failures: dict[int, BaseException] = getattr(error, "worker_failures", None) or {}
    ranked = sorted(failures.items(), key=lambda item: may_be_cured_by_a_restart(item[1]))
    return ranked[0] if ranked else (None, error)
