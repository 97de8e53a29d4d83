"""A program that is killed or loses its power at any file operation ends, started again, as one that was left alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.crash_points import programs
from tests.crash_points.exploring import Tally, explore
from tests.orchestration.evaluations.shared import Material, write_material
from tests.training.tasks import write_task

PROGRAMS: dict[str, tuple[Any, Callable[[Path], Any]]] = {
    "run": (programs.run, programs.run_outcome),
    "evaluation": (programs.evaluation, programs.evaluation_outcome),
    "study": (programs.study, programs.study_outcome),
}
SAMPLE = {"run": 4, "evaluation": 8, "study": 8}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return write_material(tmp_path_factory.mktemp("material"))


def crash(name: str, folder: Path, material: Material, sample: int | None) -> Tally:
    program, outcome = PROGRAMS[name]
    task = write_task(folder / "task", train=41, test=12) if name == "run" else material.task
    return explore(folder / "home", program, material if name == "evaluation" else task, outcome, sample)


@pytest.mark.parametrize("name", PROGRAMS)
def test_after_a_sample_of_crashes_the_same_command_ends_as_if_nothing_had_happened(
    name: str, tmp_path: Path, material: Material
) -> None:
    assert not crash(name, tmp_path, material, SAMPLE[name]).failures


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", PROGRAMS)
def test_after_every_crash_the_same_command_ends_as_if_nothing_had_happened(
    name: str, tmp_path: Path, material: Material, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = crash(name, tmp_path, material, None)
    with capsys.disabled():
        print(f"\n| {name} | {tally.operations} | {tally.points:,} | {tally.states:,} | {tally.failures.total()} |")
    assert not tally.failures
