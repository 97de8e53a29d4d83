"""What Ray's start must not change: signals, import paths, and messages about its folder."""

import os
import signal
import sys
import sysconfig
from pathlib import Path

import pytest
import ray._private.utils

import distributed_autolora
from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.cluster.connection import initialize
from distributed_autolora.orchestration.cluster.processes import STOP_SIGNALS, signals_held_back
from distributed_autolora.orchestration.cluster.ray_internals import DriverPath, own_path, without_sigterm_handler

ROOT = str(Path(distributed_autolora.__file__).parents[1])


def interrupted(sent: list[str], *numbers: signal.Signals) -> None:
    """Sends signals to this process while they are held back, and notes each that did not end the block."""
    with signals_held_back():
        for number in numbers:
            os.kill(os.getpid(), number)
            sent.append(number.name)
        raise RuntimeError("Ray did not start")


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_within_rays_start_interrupts_behind_it(number: signal.Signals) -> None:
    before, sent = signal.getsignal(number), list[str]()
    with pytest.raises(KeyboardInterrupt):
        interrupted(sent, number)
    with pytest.raises(KeyboardInterrupt):
        interrupted(sent, number, number)
    assert sent == [number.name] * 2, "the second one interrupts at once"
    assert signal.getsignal(number) is before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(RuntimeError):
            interrupted([], signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_rays_handler_of_sigterm_is_not_installed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with without_sigterm_handler():
        ray._private.utils.set_sigterm_handler(lambda *_: None)
        assert signal.getsignal(signal.SIGTERM) is before
    ray._private.utils.set_sigterm_handler(signal.SIG_DFL)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    signal.signal(signal.SIGTERM, before)


def test_workers_import_from_where_the_driver_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    site = sysconfig.get_path("purelib")
    monkeypatch.setattr(sys, "path", [f"{ROOT}/jobs", ROOT, sysconfig.get_path("stdlib"), site, "/usr/lib/python3.zip"])
    job = DriverPath()
    assert job._runtime_env_has_working_dir()
    # A worker puts each before the others: the order of the driver, without the current folder.
    assert job._py_driver_sys_path == [ROOT, f"{ROOT}/jobs"]
    assert own_path(["", *sys.path])[-1] == str(tmp_path), "a driver that imports from the current folder says so"
    submitted = DriverPath(runtime_env={"working_dir": "https://example.com/job.zip"})
    assert submitted._runtime_env_has_working_dir()
    assert submitted._py_driver_sys_path == []


@pytest.mark.parametrize("place", ["file", "x" * 120])
def test_a_folder_that_ray_cannot_use_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / place))
    with pytest.raises(UserError, match=rf"^Ray's folder {tmp_path}/{place} cannot be used \(.*\)\. Set RAY_TMPDIR"):
        initialize("local", {"include_dashboard": False, "num_cpus": 1, "_node_ip_address": "127.0.0.1"})
