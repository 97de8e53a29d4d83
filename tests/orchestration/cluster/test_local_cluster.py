"""A cluster of one's own: it starts beside another one, and nothing of it is left."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from distributed_autolora.errors import RunFailedError, UserError
from distributed_autolora.orchestration.cluster.local_cluster import LocalCluster
from distributed_autolora.orchestration.cluster.processes import (
    end_family,
    end_orphans,
    started_at,
    stop_signals_interrupt,
    uninterrupted,
)
from tests.programs import ROOT, wait_for

# A head with a child that heeds no SIGTERM and has a child in a session of its own, as the driver of a Ray job is.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""
HEAD = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {STUBBORN!r}])
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def processes_of(cluster: LocalCluster) -> set[int]:
    """Returns the processes of the session whose leader was told to work in the cluster's folder."""
    table = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            session = int((folder / "stat").read_text().rpartition(")")[2].split()[3])
            table[int(folder.name)] = (session, (folder / "cmdline").read_text())
        except OSError:
            continue
    leaders = {pid for pid, (session, words) in table.items() if pid == session and str(cluster.folder) in words}
    return {pid for pid, (session, _) in table.items() if session in leaders}


def listening(pids: set[int]) -> set[tuple[str, int]]:
    """Returns (hexadecimal address, port) of the sockets that the processes listen on."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
            except OSError:
                continue
    sockets = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and rest[5] in inodes:
                address, _, port = local.partition(":")
                sockets.add((address, int(port, 16)))
    return sockets


def answers(cluster: LocalCluster) -> bool:
    with urllib.request.urlopen(f"{cluster.dashboard_url}/api/version", timeout=30) as response:
        return b"ray_version" in response.read()


def is_free(address: str) -> bool:
    with socket.socket() as probe:
        # A connection that was closed a moment ago does not count as somebody who listens.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(address.rpartition(":")[2])))
        except OSError:
            return False
    return True


def assert_gone(cluster: LocalCluster, pids: set[int]) -> None:
    assert not [pid for pid in pids if alive(pid)]
    assert is_free(cluster.address)
    assert is_free(cluster.dashboard_url)
    assert not cluster.folder.exists()


# A program that gives its cluster, here a stubborn family in a session of its own, to a watchdog.
PROGRAM = """
import subprocess, sys, time
from pathlib import Path
from distributed_autolora.orchestration.cluster.processes import start_watchdog

head = subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True)
print(head.pid, start_watchdog(head.pid, Path(sys.argv[2])).pid, flush=True)
time.sleep(600)
"""
CLUSTER = """
import sys, time
from distributed_autolora.orchestration.cluster.local_cluster import LocalCluster

with LocalCluster() as cluster:
    print(cluster.folder, cluster.address, flush=True)
    time.sleep(600)
"""


class DeliberateError(Exception):
    """Raised inside a cluster."""


def use_beside(first: LocalCluster, second: LocalCluster, seen: set[int]) -> None:
    """Starts the second cluster, looks at it, remembers its processes, and leaves it by an error."""
    with second:
        assert answers(first)
        assert answers(second)
        seen |= processes_of(second)
        assert len(seen) > 5
        assert seen.isdisjoint(processes_of(first))
        sockets = listening(seen)
        assert int(second.address.rpartition(":")[2]) in {port for _, port in sockets}
        # 127.0.0.1 as IPv4, and mapped into IPv6.
        assert {address for address, _ in sockets} <= {"0100007F", "0000000000000000FFFF00000100007F"}
        raise DeliberateError


@pytest.mark.long
def test_two_clusters_run_side_by_side_on_loopback_and_leave_nothing() -> None:
    second, seen = LocalCluster(), set[int]()
    with LocalCluster() as first:
        with pytest.raises(DeliberateError):
            use_beside(first, second, seen)
        assert_gone(second, seen)
        assert answers(first)
        others = processes_of(first)
    assert_gone(first, others)


def test_a_cluster_that_does_not_answer_is_reported_in_one_line_and_cleaned_up() -> None:
    cluster = LocalCluster(start_timeout_s=0.0)
    with pytest.raises(RunFailedError, match="did not answer within 0 s") as caught, cluster:
        pass
    assert "\n" not in str(caught.value)
    assert not cluster.folder.exists()


def test_a_cluster_that_ends_at_its_start_is_reported_with_the_end_of_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_START_HOOK", "no_such_module.hook")
    cluster = LocalCluster()
    with pytest.raises(UserError, match=r"ended with status 1 at its start\. .*no_such_module") as caught, cluster:
        pass
    assert not isinstance(caught.value, RunFailedError), "a loop would try for ever what lasts"
    assert "\n" not in str(caught.value)
    assert not cluster.folder.exists()


def test_child_processes_see_this_cluster_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://192.0.2.1:8265")
    monkeypatch.setenv("NO_PROXY", "example.org")
    environment = LocalCluster().environment()
    assert not [key for key, value in environment.items() if key.startswith("RAY_") and "192.0.2.1" in value]
    assert environment["RAY_AUTH_MODE"] == "disabled"
    assert environment["NO_PROXY"] == "example.org,127.0.0.1,localhost"
    found = subprocess.run(
        ["sh", "-c", "command -v python"], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert Path(found.strip()).parent == Path(sys.executable).parent


def test_a_child_in_another_session_is_ended_too() -> None:
    head = subprocess.Popen([sys.executable, "-c", HEAD], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert head.stdout is not None
    child = int(head.stdout.readline())
    assert alive(child)
    end_family(head)
    assert head.returncode == -signal.SIGTERM
    assert not alive(child)


def test_what_a_killed_program_started_is_ended_by_its_watchdog(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    folder.mkdir()
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, HEAD, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert program.stdout is not None
    pids = {int(word) for _ in range(2) for word in program.stdout.readline().split()}
    assert len(pids) == 3
    assert all(map(alive, pids))
    program.kill()
    program.communicate()
    wait_for(lambda: not any(map(alive, pids)) and not folder.exists(), "the end of head, child and watchdog", 30)


def test_a_watchdog_lets_the_session_of_another_process_alone() -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        started = started_at(other.pid)
        assert started is not None
        end_orphans(other.pid, started - 1)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.long
def test_a_killed_program_leaves_no_cluster() -> None:
    program = subprocess.Popen([sys.executable, "-c", CLUSTER], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert program.stdout is not None
    folder, address = program.stdout.readline().split()
    program.kill()
    program.communicate()
    wait_for(lambda: not Path(folder).exists() and is_free(address), "the end of the cluster", 60)


def signal_twice(number: signal.Signals, steps: list[str]) -> None:
    with stop_signals_interrupt():
        with uninterrupted():
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            steps.append("cleaned up")
        os.kill(os.getpid(), number)
        time.sleep(5)
        steps.append("went on")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stop_signals_interrupt_but_not_a_clean_up(number: signal.Signals) -> None:
    # A shell starts background jobs with SIGINT ignored, and what the caller ignores stays ignored.
    inherited = signal.signal(number, signal.default_int_handler)
    try:
        steps: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            signal_twice(number, steps)
        assert steps == ["cleaned up"]
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, inherited)
