"""A command that is given a second time while it works is refused in one line, and the first ends as if alone."""

from pathlib import Path

import pytest

from distributed_autolora.errors import UserError
from distributed_autolora.reporting.study.report import write_report
from tests.crash_points.test_crash_points import PROGRAMS, material
from tests.orchestration.evaluations.shared import Material

__all__ = ["material"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_of_two_at_once_one_is_refused_and_the_other_ends_as_if_alone(
    name: str, tmp_path: Path, material: Material
) -> None:
    program, outcome = PROGRAMS[name]
    argument = material if name == "evaluation" else material.task
    refusals: list[str] = []

    def meanwhile() -> None:
        if not refusals:
            with pytest.raises(UserError, match="in use by") as refusal:
                program(tmp_path / "home", argument, lambda: None)
            refusals.append(str(refusal.value))
        elif name == "study":
            assert write_report(tmp_path / "home" / "studies" / "crashing").is_file()

    program(tmp_path / "home", argument, lambda: None)
    alone = outcome(tmp_path / "home")
    (tmp_path / "home").rename(tmp_path / "alone")
    program(tmp_path / "home", argument, meanwhile)
    assert outcome(tmp_path / "home") == alone
    assert [len(text.splitlines()) for text in refusals] == [1]
