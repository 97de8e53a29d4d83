"""Text reports: the right numbers, within 80 columns."""

from dataclasses import replace

import pytest

from distributed_autolora.records import AccuracyCount
from distributed_autolora.reporting.format import attack_label, compact, duration, event, listed, pixel_fraction
from distributed_autolora.reporting.run.mlflow_description import run_description
from distributed_autolora.reporting.run.table import epoch_header, epoch_line, result_table
from tests.reporting import runs


@pytest.mark.parametrize("epochs", [1, 20, 60, 1000])
@pytest.mark.parametrize("vanilla", [False, True])
@pytest.mark.parametrize("seconds_left", [None, 0.0, 83.2, 360000.0])
def test_every_epoch_is_one_line_of_at_most_80_columns(epochs: int, vanilla: bool, seconds_left: float | None) -> None:
    for record in runs.history(min(epochs, 60), vanilla=vanilla):
        line = epoch_line(replace(record, lr=0.000625), epochs=epochs, seconds_left=seconds_left)
        checked = epoch_line(runs.checked(replace(record, lr=0.000625), 6), epochs=epochs, seconds_left=seconds_left)
        assert max(len(line), len(checked)) <= 80
        assert checked.endswith("gap 9.4 %")
        assert "\n" not in line
        assert line.strip().startswith(f"{record.epoch}/{epochs} ")


def test_an_epoch_line_shows_its_numbers_under_their_names() -> None:
    record = replace(
        runs.history(9)[-1],
        lr=0.00125,
        losses={"total": 0.98765},
        natural=AccuracyCount(9126, 10000),
        robust=AccuracyCount(7834, 10000),
        natural_weight=0.123,
        kl_weight=5.262,
        images_per_second=1234.4,
    )
    header, line = epoch_header(20), epoch_line(record, epochs=20, seconds_left=83)
    expected = "9/20 0.00125 0.988 91.3 78.3 0.12 5.26 1234 1:23 left halved, restored 9"
    assert line.split() == expected.split()
    for name, value in (("lr", "0.00125"), ("nat %", "91.3"), ("rob %", "78.3"), ("lam2", "5.26"), ("img/s", "1234")):
        assert header.index(name) + len(name) == line.index(value) + len(value)


def test_what_a_method_lacks_are_dashes_in_an_epochs_line_and_no_columns_of_the_result() -> None:
    line = epoch_line(runs.history(1, vanilla=True)[0], epochs=20, seconds_left=None)
    assert line.split()[5:7] == ["-", "-"]
    history = runs.history(5, vanilla=True)
    table = result_table(runs.result(history, linear_head=False), history)
    assert not [word for word in ("lambda", "branch", "untouched") if word in table]


def test_the_result_table_fits_80_columns_and_has_the_numbers() -> None:
    history = runs.history(60)
    table = result_table(runs.result(history), history)
    margin = [replace(record, attack="pgd20-margin") for record in history]
    assert max(map(len, result_table(replace(runs.result(margin), attack="pgd20-margin"), margin).splitlines())) <= 80
    assert max(map(len, table.splitlines())) <= 80
    assert "\x1b" not in table
    for text in (
        f"(chosen on validation, epoch {history[-1].best_epoch})",
        "92.1  [90.3, 93.6]",
        "83.3  [80.9, 85.5]",
        "78.9  [76.3, 81.3]",
        "31.2  [28.4, 34.1]",
        "untouched backbone",
        "1,000 test images",
        "60 epochs in 2:08",
    ):
        assert text in table


def test_a_run_is_described_by_what_it_was_and_what_its_schedule_did() -> None:
    history = runs.history(20)
    result = replace(runs.result(history), rule="paired")
    text = run_description(result, history)
    assert "`autolora` on `pets`, backbone `resnet18`, learning rate: automatic, rule `paired`, seed 0." in text
    assert "Restored the weights of epoch 9 after epoch 9, 13 after epoch 13, 15 after epoch 17." in text
    assert text.index("83.3 %") < text.index("`autolora`") < text.index("autolora finetune --config")
    assert "83.3 % [80.9, 85.5]" in text
    assert "halved after epoch 9, 13, 17" in text
    fixed = run_description(replace(result, schedule="step_decay", rule=None), history)
    assert "learning rate: step decay, seed 0" in fixed


def test_a_run_that_never_opened_the_test_split_says_so_and_shows_its_schedule() -> None:
    history = runs.history(20)
    trial = replace(runs.result(history), test=None, test_images=None, linear_head=None)
    table, text = result_table(trial, history), run_description(trial, history)
    assert "test split not opened; the epoch chosen on validation is 15" in table
    assert "halved, restored epoch 15" in table
    assert "Test split not opened; the epoch chosen on validation is 15." in text
    for report in (table, text):
        assert "Wilson" not in report
        assert "test images" not in report


def test_the_result_has_a_row_an_epoch_with_what_happened() -> None:
    history = runs.history(20)
    rows = [line.split(maxsplit=7) for line in result_table(runs.result(history), history).splitlines()]
    by_epoch = {row[0].lstrip("*"): row[1:] for row in rows if row and row[0].lstrip("*").isdigit()}
    assert list(by_epoch) == [str(epoch) for epoch in range(1, 21)]
    assert by_epoch["1"][:3] == ["0.01", "0.800", "1.200"]
    assert {epoch: row[-1] for epoch, row in by_epoch.items() if len(row) == 7} == {
        "9": "halved, restored epoch 9",
        "13": "halved, restored epoch 13",
        "17": "halved, restored epoch 15",
    }
    assert [row[0] for row in rows if row and row[0].startswith("*") and row[0] != "*"] == ["*15"]


def test_events_are_named_whoever_sets_the_learning_rate() -> None:
    quiet = runs.history(1)[0]
    assert event(quiet) == ""
    assert event(replace(quiet, next_lr=0.001)) == "lr x 0.1"
    assert event(replace(quiet, halved=True, restored_epoch=1, stopped=True)) == "halved, restored epoch 1, stopped"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (42, "0:42"), (83.2, "1:23"), (3599.6, "1:00:00"), (3723, "1:02:03")]
)
def test_durations_are_written_as_clocks_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("lr", "text"),
    [(0.01, "0.01"), (0.00125, "0.00125"), (0.000625, "6.25e-4"), (1e-5, "1e-5"), (9.765625e-6, "9.77e-6"), (1, "1")],
)
def test_learning_rates_take_at_most_seven_characters(lr: float, text: str) -> None:
    assert compact(lr) == text
    assert len(text) <= 7


def test_attacks_and_sizes_are_named_as_in_print() -> None:
    assert [attack_label(name) for name in ("pgd10", "fgsm", "pgd20-margin")] == ["PGD-10", "FGSM", "PGD-20 margin"]
    assert (pixel_fraction(8 / 255), pixel_fraction(0.1)) == ("8/255", "0.1")


@pytest.mark.parametrize(
    ("items", "text"),
    [
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (["a", "b", "c"], "a, b and c"),
        (["a, b"], "a, b"),
        (["a, b", "c"], "a, b; and c"),
        (["a", "b, c", "d"], "a; b, c; and d"),
    ],
)
def test_items_that_have_commas_are_told_apart_by_semicolons(items: list[str], text: str) -> None:
    assert listed(items) == text
