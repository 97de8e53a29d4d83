"""Ray Train's checkpoint index (`checkpoint_manager_snapshot.json`), and the checkpoints that it lists.

Ray writes the index in place: a process killed during that write leaves half a file, so there is a copy. A machine that
loses its power may leave broken checkpoints in the index.
"""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from distributed_autolora.errors import kind_of
from distributed_autolora.files import write_json
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.training.checkpoint_integrity import broken_part, read_values

_NAME = "checkpoint_manager_snapshot.json"
_COPY = "snapshot_copy.json"


def copy_index(run: Path) -> None:
    """Copies the index of a run's folder; call it after a checkpoint was registered.

    Raises:
        RunFailedError: when the copy cannot be written.
    """
    snapshot = run / "train" / _NAME
    with contextlib.suppress(OSError):  # the copy matters only where the index is broken
        state = _read(snapshot)
        if state is not None:
            write_json(run / _COPY, state)


def restore_index(run: Path) -> None:
    """Replaces a broken index by its copy; without an intact copy the run starts anew.

    Raises:
        UserError: when the index is there and cannot be read; `StorageError` when it may be later.
    """
    snapshot = run / "train" / _NAME
    try:
        if not snapshot.is_file() or _read(snapshot) is not None:
            return
        copy = _read(run / _COPY)
        if copy is not None:
            write_json(snapshot, copy)
        else:
            snapshot.unlink()
    except OSError as error:
        raise kind_of(error)(
            f"Ray Train's checkpoint index {snapshot} cannot be read ({error.strerror}). Bring its disk back; the same "
            "command resumes from the last checkpoint."
        ) from None


def skip_broken(run: Path) -> list[str]:
    """Removes the newest checkpoints from the index while their content is broken, and returns warnings.

    The history goes back to the checkpoint that the run resumes from. Nothing is removed where no checkpoint is intact,
    or where one cannot be read for another reason. Call it while no worker of the run is alive.

    Raises:
        RunFailedError: when a file of the run cannot be written.
    """
    snapshot = run / "train" / _NAME
    broken: dict[str, str] = {}
    try:
        state = _read(snapshot)
        names = _names(state)
        for name in reversed(names):
            problem = broken_part(run / "train" / name)
            if problem is None:
                break
            broken[name] = problem
        if state is None or not broken or len(broken) == len(names):
            return []
        values = read_values(run / "train" / names[-len(broken) - 1])
    except OSError:
        return []
    write_json(RunFolder(run).history_file, values["history"])
    kept, indices = (state[key][: -len(broken)] for key in ("checkpoint_results", "checkpoint_report_indices"))
    # As if the broken ones had never been reported.
    now = {"checkpoint_results": kept, "checkpoint_report_indices": indices, "latest_checkpoint_result": kept[-1]}
    write_json(snapshot, state | now)
    copy_index(run)
    step = (values.get("progress") or {}).get("step", 0)
    where = f"epoch {len(values['history']['epochs'])}" + (f" and {step} steps of the next" if step else "")
    return [
        f"checkpoint {run / 'train' / name} is broken ({problem}), as after a loss of power. "
        f"The run resumes from the one before, after {where}."
        for name, problem in broken.items()
    ]


def remove_unregistered(run: Path) -> None:
    """Removes checkpoints that are not in the index: their writer was killed before they were registered.

    Call it while no worker of the run is alive.
    """
    try:
        state = _read(run / "train" / _NAME)
    except OSError:
        return
    if state is None:
        return
    registered = _names(state)
    for folder in (run / "train").glob("checkpoint_*/"):
        if folder.name not in registered:
            # A network share keeps a file that is still open somewhere under another name; it goes with the next start.
            shutil.rmtree(folder, ignore_errors=True)


def _names(state: dict[str, Any] | None) -> list[str]:
    return [] if state is None else [Path(one["checkpoint_dir_name"]).name for one in state["checkpoint_results"]]


def _read(snapshot: Path) -> dict[str, Any] | None:
    """Returns an index; None for a missing or half-written one."""
    try:
        return dict(json.loads(snapshot.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
