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
from distributed_autolora.files import remove_unfinished, sync, write_json
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.records import history_to_json
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


def sync_registered(run: Path, checkpoint: Path) -> None:
    """Waits until a checkpoint that was just registered, and the index, are on the disk: Ray only hands them to it."""
    with contextlib.suppress(OSError):  # it matters only after a loss of power, and then there is the one before
        for file in (*checkpoint.iterdir(), run / "train" / _NAME):
            sync(file)


def restore_index(run: Path) -> None:
    """Replaces a broken index by its copy; without an intact copy the run starts anew.

    Raises:
        UserError: when the index is there and cannot be read; `StorageError` when it may be later.
    """
    snapshot = run / "train" / _NAME
    remove_unfinished(snapshot.parent)
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
    """Removes broken checkpoints from the index, and returns warnings about those that the run would have resumed from.

    The history goes back to the checkpoint that the run resumes from. A run whose only checkpoint is broken starts
    anew. Nothing is removed where two are broken, or where one cannot be read for another reason. Call it while no
    worker of the run is alive.

    Raises:
        RunFailedError: when a file of the run cannot be written.
    """
    snapshot = run / "train" / _NAME
    try:
        state = _read(snapshot)
        problems = {name: broken_part(run / "train" / name) for name in _names(state)}
        intact = [name for name, problem in problems.items() if problem is None]
        values = read_values(run / "train" / intact[-1]) if intact else {"history": history_to_json([])}
    except OSError:
        return []
    if state is None or len(intact) == len(problems) or (not intact and len(problems) > 1):
        return []
    names = list(problems)
    skipped = names[names.index(intact[-1]) + 1 :] if intact else names
    if skipped:
        write_json(RunFolder(run).history_file, values["history"])
    _write_without(run, state, [name for name in names if name not in intact])
    step = (values.get("progress") or {}).get("step", 0)
    where = f"epoch {len(values['history']['epochs'])}" + (f" and {step} steps of the next" if step else "")
    resumes = f"resumes from the one before, after {where}" if intact else "starts anew"
    return [
        f"checkpoint {run / 'train' / name} is broken ({problems[name]}), as after a loss of power. The run {resumes}."
        for name in skipped
    ]


def _write_without(run: Path, state: dict[str, Any], broken: list[str]) -> None:
    """Writes the index and its copy as if broken checkpoints had never been reported."""
    kept = [position for position, name in enumerate(_names(state)) if name not in broken]
    if not kept:
        (run / "train" / _NAME).unlink()
        return
    now = {key: [state[key][at] for at in kept] for key in ("checkpoint_results", "checkpoint_report_indices")}
    write_json(run / "train" / _NAME, state | now | {"latest_checkpoint_result": now["checkpoint_results"][-1]})
    copy_index(run)


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
