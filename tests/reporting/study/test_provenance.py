"""What a report says of where its numbers come from, and of which of them to doubt."""

from dataclasses import replace
from pathlib import Path

import pytest

from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.reporting.masking import masking_summary
from distributed_autolora.reporting.study.loading import load_study
from distributed_autolora.reporting.study.provenance import reproduction, warnings
from tests.reporting import runs
from tests.reporting.study import studies

ONE, OTHER = "python jobs/compare.py --arms AutoLoRa", "python jobs/compare.py --arms TWINS"


def printed(folder: Path) -> list[str]:
    """Returns the commands in the report of a study."""
    return reproduction(load_study(folder), None).split("```\n")[1].splitlines()


def test_all_commands_of_a_study_are_printed_in_order(tmp_path: Path) -> None:
    assert printed(studies.study(tmp_path, commands=[ONE, OTHER])) == [ONE, OTHER]


@pytest.mark.parametrize("told_by", ["result", "history"])
def test_a_run_whose_checks_warned_is_a_reason_to_doubt_it(told_by: str, tmp_path: Path) -> None:
    folder = studies.study(tmp_path, autoattack=False)
    for name, fallen in (("final-0", (9, 2, 12)), ("final-1", (2, 2, 2))):
        run = RunFolder(folder / "runs" / name)
        history = run.history()
        for epoch, count in zip((4, 8, 12), fallen, strict=True):
            history[epoch - 1] = runs.checked(history[epoch - 1], count)
        if told_by == "history":
            run.write_history(history)
        else:
            run.write_result(replace(run.result(), masking=masking_summary(history)))
    (line,) = [text for text in warnings(load_study(folder), None) if text.startswith("AutoLoRa, seed")]
    assert all(part in line for part in ("seed 0", "epoch 4 and 12", "18.8 %, epoch 12"))
