"""What a terminal shows while a run goes on, and what a log does not."""

import contextlib
import io
import os
import pty
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from distributed_autolora import console, progress
from distributed_autolora.config import ExperimentConfig, OptimizationConfig
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.orchestration.runs.progress import epoch_lines, seconds_left
from distributed_autolora.orchestration.runs.step_file import read_steps, step_writer
from distributed_autolora.records import EpochRecord
from distributed_autolora.training.reporter import StepProgress
from tests.programs import wait_for
from tests.reporting import runs

CONFIG = ExperimentConfig(optimization=OptimizationConfig(epochs=20))
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*(?:3|9)\d[0-9;]*m")


@contextlib.contextmanager
def _terminal() -> Iterator[list[str]]:
    """Makes standard output a terminal; the list grows by what it is sent."""
    ours, theirs = pty.openpty()
    seen: list[str] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # how a pseudo-terminal ends
            while data := os.read(ours, 4096):
                seen.append(data.decode())

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as stdout, contextlib.redirect_stdout(stdout):
        yield seen
        stdout.flush()
    reader.join(10)
    os.close(ours)


def _plain(seen: list[str]) -> str:
    return ESCAPE.sub("", "".join(seen))


def _folder(path: Path, history: list[EpochRecord]) -> RunFolder:
    path.mkdir(exist_ok=True)
    folder = RunFolder(path)
    folder.write_history(history)
    return folder


def _watch(folder: RunFolder, seen: list[str]) -> None:
    """Lets a run of 20 epochs reach its 9th epoch and its end while a terminal is watched."""
    history = runs.history(20)
    with epoch_lines(folder, CONFIG):
        wait_for(lambda: "workers start" in _plain(seen), "workers start", 20)
        folder.write_history(history[:9])
        wait_for(lambda: "chosen: epoch 9" in _plain(seen), "chosen: epoch 9", 20)
        folder.write_history(history)
        wait_for(lambda: "final evaluation" in _plain(seen), "final evaluation", 20)


def test_a_terminal_shows_position_and_chosen_epoch_below_one_line_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with _terminal() as seen:
        _watch(_folder(tmp_path / "run", []), seen)
    lines = _plain(seen).replace("\r", "\n").splitlines()
    printed = [line.split()[0] for line in lines if re.match(r" *\d+/20 ", line)]
    assert printed == [f"{i}/20" for i in range(1, 21)]
    drawn = [line for line in lines if line.startswith("epoch ") and "left" in line and "lr" not in line]
    assert any(re.search(r" 0/20 .*workers start", line) for line in drawn)
    assert any(re.search(r" 9/20 .*chosen: epoch 9 \(PGD-10 75\.\d %\)", line) for line in drawn)
    assert max(map(len, lines)) <= 80
    assert COLOUR.search("".join(seen))
    assert "\x1b[?25h" in "".join(seen), "the cursor is shown again"


def test_no_color_leaves_the_bar_and_takes_its_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    with _terminal() as seen:
        _watch(_folder(tmp_path / "run", []), seen)
    assert not COLOUR.search("".join(seen))


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def print_into_a_closed_pipe(line: str) -> None:
        raise BrokenPipeError(line)

    folder, finished = _folder(tmp_path / "run", []), False
    with epoch_lines(folder, CONFIG, print_into_a_closed_pipe):
        folder.write_history(runs.history(3))
        finished = True
    assert finished
    assert "progress is no longer shown" in capsys.readouterr().err


def test_a_history_that_cannot_be_read_is_a_warning_and_a_bug_in_the_thread_is_raised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _folder(tmp_path / "run", [])
    with epoch_lines(folder, CONFIG):
        folder.history_file.write_text("{")
    assert "warning: progress is no longer shown" in capsys.readouterr().err

    def broken(_: str) -> None:
        raise ZeroDivisionError

    folder.write_history([])
    with pytest.raises(ZeroDivisionError), epoch_lines(folder, CONFIG, broken):
        folder.write_history(runs.history(1))


@pytest.mark.parametrize("way", ["a pipe", "a dumb terminal"])
def test_a_log_has_one_line_an_epoch_and_nothing_of_the_view(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm" if way == "a pipe" else "dumb")
    monkeypatch.setenv("FORCE_COLOR", "1")
    folder, log = _folder(tmp_path / "run", []), io.StringIO()
    with contextlib.redirect_stdout(log) if way == "a pipe" else _terminal() as seen, epoch_lines(folder, CONFIG):
        time.sleep(0.5)
        folder.write_history(runs.history(20)[:2])
        time.sleep(0.5)
    text = log.getvalue() if way == "a pipe" else "".join(seen)
    assert "\x1b" not in text
    header, *lines = text.replace("\r", "").splitlines()
    assert header.split()[:2] == ["epoch", "lr"]
    assert [line.split()[0] for line in lines] == ["1/20", "2/20"]


def test_steps_within_an_epoch_are_shown_on_a_terminal_and_once_a_minute_in_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    folder = _folder(tmp_path / "run", runs.history(20)[:2])
    steps = StepProgress(epoch=3, step=12, steps=40, images_per_second=66.4, seconds_per_step=2.0)
    line = "step 12/40, 66 images/s, 0:56 left of the epoch"
    with _terminal() as seen, epoch_lines(folder, CONFIG):
        step_writer(folder.path)(replace(steps, epoch=2))  # of an epoch that has ended
        time.sleep(0.5)
        assert "step" not in _plain(seen)
        step_writer(folder.path)(steps)
        wait_for(lambda: line in _plain(seen), line, 20)
    assert not (folder.path / "progress.json").exists()
    assert read_steps(folder.path) is None
    for every, expected in ((0.0, [f"epoch 3 of 20: {line}"]), (60.0, [])):
        monkeypatch.setattr(progress, "LOG_EVERY_S", every)
        with contextlib.redirect_stdout(io.StringIO()) as log, epoch_lines(folder, CONFIG):
            step_writer(folder.path)(steps)
            time.sleep(0.5)
        assert sorted(set(log.getvalue().splitlines())) == expected


def test_what_was_measured_before_a_restart_gives_no_time_left() -> None:
    history = [replace(record, epoch_seconds=100.0) for record in runs.history(7)]
    assert seconds_left(history, before=7, epochs=20) is None
    history += [replace(record, epoch_seconds=10.0) for record in runs.history(8)[7:]]
    assert seconds_left(history, before=7, epochs=20) == 120.0
    assert console.is_quiet() is False
