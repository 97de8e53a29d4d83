"""How every program ends: its status, one line, and a stack trace only where one is asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distributed_autolora import __version__
from distributed_autolora.config.experiment import read_config
from distributed_autolora.config.recipes import recipe
from distributed_autolora.errors import first_line
from distributed_autolora.programs import PROGRAMS

ROOT = Path(__file__).parents[1]
REFUSED = {
    "compare.py": ["--study", "nothing"],
    "demo.py": ["--quite"],
    "doctor.py": ["--seed", "many"],
    "evaluate.py": ["--attacks", "pgd10"],
    "finetune.py": ["--recipe", "dem"],
    "prepare_data.py": ["folder", "--source", "nowhere", "--output", "somewhere"],
    "pretrain.py": ["--optimization.lr", "1/0"],
}

# A program of each kind of end, as those in jobs/ are written.
ENDS = """
import os, signal, sys
from distributed_autolora.cli import common_flags, run_program
from distributed_autolora.errors import RunFailedError, UserError
from distributed_autolora.console import print_line

def main() -> None:
    print_line("on the way")
    print("the result", sys.argv[1:], common_flags())
    end = sys.argv[1]
    if end == "refused":
        raise UserError("Bad input: fix it.")
    if end == "failed":
        raise RunFailedError("The run failed.")
    if end == "bug":
        raise KeyError("http://user:secret@host/x")
    if end == "interrupted":
        os.kill(os.getpid(), signal.SIGINT)
    if end == "terminated":
        os.kill(os.getpid(), signal.SIGTERM)

# A program that was started in the background of a script inherits "ignore SIGINT".
signal.signal(signal.SIGINT, signal.default_int_handler)
run_program(main)
"""


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "DISTRIBUTED_AUTOLORA_HOME": str(folder / "home")}


def _end(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ENDS, *words]
    return subprocess.run(command, env=_environment(folder), capture_output=True, text=True, check=False)


def test_every_job_has_a_wrong_command_line_to_refuse() -> None:
    assert REFUSED.keys() == {path.name for path in (ROOT / "jobs").glob("*.py")}


@pytest.mark.parametrize("name", REFUSED)
def test_a_program_refuses_a_wrong_command_line_with_status_2_and_one_line(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "jobs" / name), "--quiet", *REFUSED[name]]
    environment = _environment(tmp_path)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert name != "demo.py" or "--quite" in done.stderr


def test_the_installed_command_runs_each_program_and_lists_them(tmp_path: Path) -> None:
    def autolora(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "distributed_autolora", *words]
        environment = _environment(tmp_path)
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert autolora("--version").stdout == f"distributed-autolora {__version__}\n"
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    listed = autolora().stdout
    modules = {path.stem for path in (ROOT / "distributed_autolora" / "programs").glob("[a-z]*.py")}
    assert modules == {name.replace(" ", "_") for name in PROGRAMS}
    assert all(f"autolora {name} " in listed for name in PROGRAMS)
    refused = autolora("evaluat")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert 'mean "evaluate"?' in refused.stderr
    refused = autolora("finetune", "--recipe", "custom")
    assert refused.returncode == 2
    assert "autolora data prepare folder --source IMAGES" in refused.stderr
    copied = autolora("--quiet", "recipes", "copy", "custom", "mine.yaml")
    assert (copied.returncode, copied.stdout, copied.stderr) == (0, "", "")
    assert autolora("recipes", "show", "custom").stdout == (tmp_path / "mine.yaml").read_text()
    assert read_config(tmp_path / "mine.yaml") == recipe("custom")
    assert "exists already" in autolora("recipes", "copy", "demo", "mine.yaml").stderr


@pytest.mark.parametrize(
    ("end", "status", "last"),
    [
        ("done", 0, ""),
        ("refused", 2, "error: Bad input: fix it."),
        ("failed", 1, "error: The run failed."),
        ("interrupted", 130, "Interrupted. The same command resumes from the last checkpoint, if there is one."),
        ("terminated", 130, "Interrupted. The same command resumes from the last checkpoint, if there is one."),
    ],
)
def test_a_status_says_how_a_program_ended(end: str, status: int, last: str, tmp_path: Path) -> None:
    done = _end(tmp_path, end)
    assert done.returncode == status
    assert done.stderr.strip() == last
    assert done.stdout == f"on the way\nthe result ['{end}'] []\n"


def test_quiet_leaves_the_result_and_debug_shows_where_a_refusal_came_from(tmp_path: Path) -> None:
    done = _end(tmp_path, "refused", "--quiet", "--debug")
    assert done.returncode == 2
    assert done.stdout == "the result ['refused'] ['--quiet', '--debug']\n"
    assert done.stderr.startswith("Traceback (most recent call last)")
    assert done.stderr.endswith("error: Bad input: fix it.\n")


def test_a_bug_is_one_line_that_names_its_crash_report_and_debug_prints_the_trace(tmp_path: Path) -> None:
    done = _end(tmp_path, "bug")
    (kept,) = (tmp_path / "home" / "errors").iterdir()
    assert done.returncode == 1
    assert done.stderr.startswith("error: this is a bug (KeyError: ")
    assert done.stderr.count("\n") == 1
    assert str(kept) in done.stderr
    assert "in main" in kept.read_text()
    shown = _end(tmp_path, "bug", "--debug")
    assert shown.returncode == 1
    assert "in main" in shown.stderr
    assert "secret" not in done.stderr + shown.stderr + kept.read_text()


def test_a_reader_that_leaves_early_is_no_bug(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", ENDS, "done"]
    done = subprocess.run(command, env=_environment(tmp_path), stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == b"error: the reader of this program's output has closed it.\n"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("\n  the disk\nis full"), "the disk"),
        (ValueError(), "ValueError"),
        (ValueError(" \n"), "ValueError"),
    ],
)
def test_the_first_line_of_an_error_is_never_empty(error: Exception, expected: str) -> None:
    assert first_line(error) == expected
