"""Runs tests against mutants, in child processes and copies of the repository."""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.mutants.mutations import Mutant

ROOT = Path(__file__).resolve().parents[2]
_COPIED = ("distributed_autolora", "tests")
_SECONDS = 600
"""After them a mutant counts as killed; one test has 120."""
_POLL = 0.05


@contextlib.contextmanager
def copied_repository() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        for item in ROOT.iterdir():
            if item.name in _COPIED:
                shutil.copytree(item, Path(folder, item.name), ignore=shutil.ignore_patterns("__pycache__"))
            else:
                Path(folder, item.name).symlink_to(item)
        yield Path(folder)


def run_mutants(
    jobs: Sequence[tuple[Mutant, Sequence[str]]], copies: int
) -> Iterator[tuple[Mutant, str | None, float]]:
    """Yields each mutant, the first test that it fails (None: it survives) and seconds; some run at the same time."""
    waiting = list(reversed(jobs))
    with contextlib.ExitStack() as stack:
        free = [stack.enter_context(copied_repository()) for _ in range(copies)]
        running: dict[Child, Mutant] = {}
        while waiting or running:
            while waiting and free:
                mutant, tests = waiting.pop()
                copy = free.pop()
                (copy / mutant.path).write_text(mutant.source)
                running[Child(tests, copy)] = mutant
            child, status, failed = _first_to_end(list(running))
            mutant = running.pop(child)
            (child.copy / mutant.path).write_text((ROOT / mutant.path).read_text())
            free.append(child.copy)
            if status in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
                raise RuntimeError(f"{mutant.path} has no tests")
            yield mutant, None if status == pytest.ExitCode.OK else failed, time.monotonic() - child.start


def run_tests(tests: Sequence[str]) -> tuple[int, str]:
    """Returns pytest's exit status for the tests without a mutant, and the first failure's name."""
    with copied_repository() as copy:
        return _first_to_end([Child(tests, copy)])[1:]


class Child:
    """A child process that runs tests in a copy of the repository; it need not import torch again."""

    def __init__(self, tests: Sequence[str], copy: Path) -> None:
        self.copy, self.report, self.start = copy, copy / "failed", time.monotonic()
        self.report.unlink(missing_ok=True)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                status = _tests_here(tests, copy, self.report)
            except BaseException as error:
                self.report.write_text(repr(error))
                status = 1
            os._exit(int(status))

    def ended(self) -> tuple[int, str] | None:
        """Returns pytest's exit status and the first failure's name; None while the tests run."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status), self.report.read_text() if self.report.exists() else "crash"
        if time.monotonic() < self.start + _SECONDS:
            return None
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return pytest.ExitCode.TESTS_FAILED, "timeout"


def _first_to_end(children: Sequence[Child]) -> tuple[Child, int, str]:
    while True:
        for child in children:
            if found := child.ended():
                return child, *found
        time.sleep(_POLL)


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
    return pytest.main(["-x", "-m", "not long", "-p", "no:cacheprovider", "--timeout=120", *tests], [_Reporter(report)])


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
