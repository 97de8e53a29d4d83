"""What the checks by a stronger attack say: when they warn, and in which words."""

import itertools
from dataclasses import replace
from fractions import Fraction
from math import comb
from pathlib import Path

import pytest

from distributed_autolora.evaluation.masking_test import least_share, overstates, warns_from
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.orchestration.runs.progress import epoch_lines
from distributed_autolora.records import EpochRecord, MaskingSummary
from distributed_autolora.reporting.masking import masking_sentences, masking_status, masking_summary, masking_warning
from distributed_autolora.reporting.run.mlflow_description import run_description
from distributed_autolora.reporting.run.table import epoch_line, result_table
from tests.reporting import runs
from tests.training.tasks import small_config


@pytest.mark.parametrize(("fallen", "total"), [(1, 32), (3, 32), (7, 64), (60, 2500), (64, 64)])
def test_the_bound_is_the_share_at_which_so_many_fall_in_one_case_of_twenty(fallen: int, total: int) -> None:
    share = Fraction(least_share(fallen, total))
    tail = 1 - sum(comb(total, k) * share**k * (1 - share) ** (total - k) for k in range(fallen))
    assert float(tail) == pytest.approx(0.05, abs=1e-9)


def test_nothing_fallen_bounds_nothing_and_the_rule_needs_more_than_two_points_for_sure() -> None:
    assert least_share(0, 64) == 0
    assert [overstates(fallen, 64) for fallen in (0, 3, 4, 9)] == [False, False, True, True]
    assert not overstates(60, 2500), "2.4 %, but within chance of 2 %"


def test_a_check_warns_from_fewer_points_on_the_more_images_it_has() -> None:
    for total in (25, 58, 64, 150, 2500):
        smallest = next(fallen for fallen in range(total + 1) if overstates(fallen, total))
        assert warns_from(total) == smallest, total
    assert [warns_from(total) for total in (25, 58, 150)] == [3, 4, 7]


def warning_of(record: EpochRecord, method: str = "autolora", rule: str = "released") -> str | None:
    return masking_warning(record, name="RUN", method=method, rule=rule)


def test_an_epoch_that_was_checked_shows_its_gap_and_warns_only_when_it_is_large() -> None:
    record = runs.history(9)[-2]
    assert "gap" not in epoch_line(record, epochs=20, seconds_left=83)
    small, large = runs.checked(record, 2), runs.checked(record, 9)
    assert epoch_line(small, epochs=20, seconds_left=83).endswith("masking gap 3.1 %")
    assert warning_of(record) is None
    assert warning_of(small) is None
    warning = warning_of(large)
    assert warning is not None
    command = "evaluate --model RUN --attacks autoattack"
    for words in ("epoch 8: ", "9 of 64 validation images", "PGD-10", "14.1 %", "6.2 %", command):
        assert words in warning
    assert "\n" not in warning


def test_the_advice_never_names_what_is_already_on() -> None:
    alarming = runs.checked(runs.history(1)[0], 9)
    for method, rule in itertools.product(("autolora", "vanilla"), ("released", "paired")):
        text = warning_of(alarming, method, rule) or ""
        assert ("--method vanilla" in text) == (method != "vanilla")
        assert ("--schedule.rule paired" in text) == (rule != "paired")


def test_the_result_has_the_gap_nearest_to_the_chosen_epoch_and_the_largest_and_repeats_a_warning() -> None:
    history = runs.history(20)
    assert masking_summary(history) is None
    assert history[-1].best_epoch == 15
    for epoch, fallen in ((8, 9), (12, 1), (16, 2), (20, 1)):
        history[epoch - 1] = runs.checked(history[epoch - 1], fallen)
    summary = masking_summary(history)
    chosen = history[15].masking
    assert chosen is not None
    assert summary == MaskingSummary(
        checks=4,
        images=64,
        epoch=16,
        robust_accuracy_stronger=chosen.robust / 64,
        gap=2 / 64,
        warns_from=4 / 64,
        largest_gap=9 / 64,
        largest_gap_epoch=8,
        warned_epochs=(8,),
    )
    result = runs.result(history)
    warned, quiet = (replace(result, masking=found) for found in (summary, replace(summary, warned_epochs=())))
    for report in (result_table(quiet, history), run_description(quiet, history)):
        words = " ".join(report.split())
        assert "3.1 % of 64 validation images" in words
        assert "in epoch 16 (warns from 6.2 % on; largest of 4 checks: 14.1 %, epoch 8)" in words
        assert "Warning" not in words
    for report in (result_table(warned, history), run_description(warned, history)):
        assert "Warning in epoch 8:" in " ".join(report.split())
    assert max(map(len, result_table(warned, history).splitlines())) <= 80
    assert "masking" not in result_table(result, history)


def test_the_status_to_filter_by_tells_unchecked_too_few_clear_and_warned_apart() -> None:
    first = runs.history(1)[0]
    clear, warned = (masking_summary([runs.checked(first, broken)]) for broken in (0, 9))
    few = masking_summary([runs.checked(first, 20, images=24)])
    found = [masking_status(one) for one in (None, clear, warned, few)]
    assert found == ["unchecked", "clear", "warned", "too few"]
    assert warning_of(runs.checked(first, 20, images=24)) is None, "24 images are too few to tell"
    (sentence,) = masking_sentences(replace(runs.result([first]), masking=few))
    assert "24 checked images are too few to tell" in sentence


def test_a_running_program_warns_once_for_a_checked_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path / "my-run")
    folder.path.mkdir()
    history = runs.history(4)
    history[3] = runs.checked(history[3], 9)
    with epoch_lines(folder, small_config("task", epochs=4)):
        folder.write_history(history)
    captured = capsys.readouterr()
    assert captured.out.count("gap 14.1 %") == 1
    assert captured.err.count("warning: epoch 4: ") == 1
    assert "--model my-run" in captured.err
