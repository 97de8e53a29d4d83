"""Runs tests against a mutant, in a child process and a copy of the repository."""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mutants.mutations import Mutant

ROOT = Path(__file__).resolve().parents[2]
_COPIED = ("distributed_autolora", "tests")
_SECONDS = 1800
"""After them a mutant counts as killed; one test has 300."""
_POLL = 0.05


@contextmanager
def copied_repository() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        for item in ROOT.iterdir():
            if item.name in _COPIED:
                shutil.copytree(item, Path(folder, item.name), ignore=shutil.ignore_patterns("__pycache__"))
            else:
                Path(folder, item.name).symlink_to(item)
        yield Path(folder)


def killed_by(mutant: Mutant, tests: Sequence[str], copy: Path) -> str | None:
    """Returns the first test that the mutant fails, "timeout", or None for a mutant that survives."""
    module = copy / mutant.path
    original = module.read_text()
    module.write_text(mutant.source)
    try:
        status, failed = run_tests(tests, copy)
    finally:
        module.write_text(original)
    if status in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"{mutant.path} has no tests: {tests}")
    return None if status == pytest.ExitCode.OK else failed


def run_tests(tests: Sequence[str], copy: Path) -> tuple[int, str]:
    """Returns pytest's exit status for the tests in a copy of the repository, and the first failure's name."""
    report = copy / "failed"
    report.unlink(missing_ok=True)
    child = os.fork()  # a child need not import torch again
    if child == 0:
        try:
            status = _tests_here(tests, copy, report)
        except BaseException as error:
            report.write_text(repr(error))
            status = 1
        os._exit(int(status))
    deadline = time.monotonic() + _SECONDS
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return pytest.ExitCode.TESTS_FAILED, "timeout"
        time.sleep(_POLL)
    failed = report.read_text() if report.exists() else "crash"
    return os.waitstatus_to_exitcode(done[1]), failed


def _tests_here(tests: Sequence[str], copy: Path, report: Path) -> int:
    os.setpgid(0, 0)
    os.chdir(copy)
    with open(os.devnull, "r+b") as nothing:
        for descriptor in (0, 1, 2):
            os.dup2(nothing.fileno(), descriptor)
    for name in [name for name in sys.modules if name.partition(".")[0] in _COPIED]:
        del sys.modules[name]
    sys.path[:] = [str(copy), *(entry for entry in sys.path if entry not in ("", str(ROOT)))]
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.environ["PYTHONPATH"] = str(copy)
    return pytest.main(["-x", "-m", "not long", "-p", "no:cacheprovider", "--timeout=300", *tests], [_Reporter(report)])


class _Reporter:
    """Writes the name of the first test that fails."""

    def __init__(self, report: Path) -> None:
        self._report = report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self._report.exists():
            self._report.write_text(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self._report.exists():
            self._report.write_text(f"import of {report.nodeid}")
