"""A second copy of Ray Train's list of checkpoints, which Ray writes in place.

A process killed in the middle of that write leaves half a file, and no later start could read it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from distributed_autolora.orchestration.run_folder import write_text

_NAME = "checkpoint_manager_snapshot.json"
_COPY = "snapshot_copy.json"


def copy_snapshot(run: Path) -> None:
    """Copies the list of checkpoints of a run's folder; call it after a checkpoint was registered."""
    snapshot = run / "train" / _NAME
    if _is_whole(snapshot):
        write_text(run / _COPY, snapshot.read_text())


def mend_snapshot(run: Path) -> None:
    """Puts the copy in the place of a broken list of checkpoints; without a copy the run starts anew."""
    snapshot = run / "train" / _NAME
    if not snapshot.is_file() or _is_whole(snapshot):
        return
    if (run / _COPY).is_file():
        write_text(snapshot, (run / _COPY).read_text())
    else:
        snapshot.unlink()


def remove_unregistered(run: Path) -> None:
    """Removes checkpoints that are not on the list: their writer was killed before Ray Train heard of them.

    Call it while no worker of the run is alive.
    """
    snapshot = run / "train" / _NAME
    if not _is_whole(snapshot):
        return
    registered = {
        Path(one["checkpoint_dir_name"]).name for one in json.loads(snapshot.read_text())["checkpoint_results"]
    }
    for folder in (run / "train").glob("checkpoint_*/"):
        if folder.name not in registered:
            # A network share keeps a file that is still open somewhere under another name; it goes with the next start.
            shutil.rmtree(folder, ignore_errors=True)


def _is_whole(snapshot: Path) -> bool:
    try:
        json.loads(snapshot.read_text())
    except (OSError, ValueError):
        return False
    return True
