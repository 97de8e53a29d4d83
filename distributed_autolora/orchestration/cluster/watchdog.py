"""Ends a local cluster after its program was killed: python -m ...cluster.watchdog HEAD_PID FOLDER.

A program that is killed by SIGKILL or for lack of memory ends nothing that it started. This process reads a pipe whose
other end only that program holds, so it sees the program's end, whatever caused it.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

from distributed_autolora.orchestration.cluster.processes import STOP_SIGNALS, end_orphans, started_at


def start_watchdog(head: int, folder: Path) -> subprocess.Popen[bytes]:
    """Starts the process that ends a cluster after this program; kill it when the cluster was ended in order.

    Args:
        head: id of the cluster's first process, the leader of a session of its own.
        folder: the cluster's folder, removed with it.
    """
    # Only the path of this file tells where the package is, if it is not installed.
    package = Path(__file__).resolve().parents[3]
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(head), str(folder)],
        cwd=package,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def main() -> None:
    """Waits for the end of the program, then ends its cluster and removes the folder."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    head, folder = int(sys.argv[1]), Path(sys.argv[2])
    started = started_at(head)
    sys.stdin.buffer.read()
    end_orphans(head, started)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
