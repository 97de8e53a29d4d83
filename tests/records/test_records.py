"""Records come back from JSON as they were, and nothing else is taken for one."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_autolora.errors import UserError
from distributed_autolora.evaluation.attacks import parse
from distributed_autolora.records import (
    AccuracyCount,
    Curve,
    CurvePoint,
    Evaluation,
    GradientSimilarity,
    MaskingSummary,
    RunResult,
    from_json,
    history_from_json,
    history_to_json,
    pgd_name,
    to_json,
)
from tests.reporting import runs
from tests.reporting.evaluations import evaluation


def through_text(values: Any) -> Any:
    return json.loads(json.dumps(values))


@pytest.mark.parametrize("vanilla", [False, True])
def test_a_history_comes_back_from_its_file_as_it_was(vanilla: bool) -> None:
    history = runs.history(20, vanilla=vanilla)
    history[7] = runs.checked(history[7], 9)
    history[8] = replace(history[8], gradient_similarity=GradientSimilarity(1 / 3, -0.1), stopped=True)
    assert history_from_json(through_text(history_to_json(history)), "history.json") == history


def test_a_result_comes_back_from_its_file_as_it_was() -> None:
    found = MaskingSummary(
        checks=2,
        images=64,
        epoch=4,
        robust_accuracy_stronger=0.7,
        gap=2 / 64,
        warns_from=4 / 64,
        largest_gap=0.1,
        largest_gap_epoch=3,
        warned_epochs=(3, 4),
    )
    full = replace(runs.result(runs.history(6)), masking=found, task_card={"task": "pets", "images": {"train": 3}})
    closed = replace(full, test=None, test_images=None, linear_head=None, masking=None, rule=None)
    for result in (full, closed):
        assert from_json(RunResult, through_text(to_json(result)), "result.json") == result


def test_an_evaluation_comes_back_from_its_file_as_it_was() -> None:
    curve = Curve((CurvePoint(0.0, AccuracyCount(931, 1000)), CurvePoint(0.1, AccuracyCount(1, 1000))), 1 / 3)
    for found in (evaluation(curve=curve), evaluation(sanity=(), image_size=32, image_shape=(3, 32, 32))):
        assert from_json(Evaluation, through_text(to_json(found)), "evaluation.json") == found


def test_accuracies_of_an_evaluation_are_logged_under_the_names_of_their_attacks() -> None:
    assert evaluation().accuracies() == {
        "natural_accuracy": AccuracyCount(931, 1000),
        "robust_accuracy/autoattack": AccuracyCount(841, 1000),
    }
    assert evaluation().attack("pgd10") is None


def test_the_name_of_a_pgd_attack_is_what_attacks_are_asked_for_by() -> None:
    asked = [(10, 0, "cross_entropy"), (100, 5, "cross_entropy"), (20, 1, "margin"), (7, 0, "margin")]
    names = [pgd_name(num_steps, random_starts=starts, loss=loss) for num_steps, starts, loss in asked]
    assert names == ["pgd10", "pgd100x5", "pgd20x1-margin", "pgd7-margin"]
    assert [(a.num_steps, a.random_starts, a.loss) for a in parse(",".join(names))] == asked


@pytest.mark.parametrize("values", [[{"epoch": 1, "val/robust_accuracy/pgd10": 0.5}], {"name": "run"}, {"format": 99}])
def test_files_of_another_version_are_refused_in_one_line(values: Any) -> None:
    for read in (history_from_json, partial(from_json, RunResult), partial(from_json, Evaluation)):
        with pytest.raises(UserError) as refused:
            read(values, "/runs/one/file.json")
        message = str(refused.value)
        assert ("version 0.1" in message) == ("format" not in values)
        assert message.startswith("/runs/one/file.json ")
        assert "--fresh" in message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("epoch", None, 'key "epochs[0].epoch" is missing'),
        ("epoch", "1", '"epochs[0].epoch"'),
        ("epoch", True, '"epochs[0].epoch"'),
        ("lr", "0.01", '"epochs[0].lr"'),
        ("passes", {"forward": 1}, 'key "epochs[0].passes.backward" is missing'),
        ("losses", {"total": "much"}, '"epochs[0].losses.total"'),
        ("epock", 1, 'unknown key "epochs[0].epock". Did you mean "epoch"?'),
    ],
)
def test_a_damaged_record_is_refused_with_its_place(key: str, value: Any, says: str) -> None:
    values = through_text(history_to_json(runs.history(1)))
    (record,) = values["epochs"]
    if value is None:
        del record[key]
    else:
        record[key] = value
    with pytest.raises(UserError) as refused:
        history_from_json(values, "history.json")
    assert says in str(refused.value)


def test_what_was_not_measured_has_no_metric_and_counts_are_divided_once() -> None:
    record = runs.history(1, vanilla=True)[0]
    metrics = record.metrics()
    assert metrics["val/robust_accuracy/pgd10"] == record.robust.correct / record.robust.total
    absent = ("natural_weight", "kl_weight", "natural_branch_accuracy", "restored_epoch", "val/masking_gap")
    assert not {*absent, "gradient_similarity"} & set(metrics)
    assert runs.checked(record, 3).metrics()["val/masking_gap"] == 3 / 64


COUNTS = st.integers(1, 1000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(shards=st.lists(COUNTS, min_size=1, max_size=8))
def test_shards_give_the_accuracy_of_the_whole_not_the_mean_of_accuracies(shards: list[tuple[int, int]]) -> None:
    whole = AccuracyCount(0, 0)
    for correct, total in shards:
        whole = whole + AccuracyCount(correct, total)
    correct, total = (sum(column) for column in zip(*shards, strict=True))
    assert (whole.correct, whole.total) == (correct, total)
    assert whole.accuracy == correct / total
