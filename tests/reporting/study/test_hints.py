"""What a report says of causes and of a search follows from the records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.records import EpochRecord
from distributed_autolora.reporting.study.hints import reasons
from distributed_autolora.reporting.study.loading import load_study
from distributed_autolora.reporting.study.search import search_summary
from distributed_autolora.reporting.study.statistics import compare
from tests.reporting.study import studies


def rewrite(folder: Path, run: str, change: Callable[[list[EpochRecord]], list[EpochRecord]]) -> None:
    """Changes the history of a run on disk."""
    place = RunFolder(folder / "runs" / run)
    place.write_history(change(place.history()))


def test_a_reference_under_step_decay_is_not_said_to_have_been_halved(tmp_path: Path) -> None:
    folder = studies.study(tmp_path, reference="Vanilla RFT", autoattack=False)
    study = load_study(folder)
    for run in study.of("Vanilla RFT", "final"):

        def decay(records: list[EpochRecord]) -> list[EpochRecord]:
            return [
                replace(record, halved=False, restored_epoch=None, lr=0.01 if record.epoch <= 10 else 0.001)
                for record in records
            ]

        rewrite(folder, str(run.name), decay)
    study = load_study(folder)
    found = reasons(study, compare(study))
    assert found[0].startswith("Vanilla RFT, seed 0: the learning rate went from 0.01 to 0.001 in 20 epochs; the epoch")
    assert not any("halving" in sentence for sentence in found)


@pytest.mark.parametrize("rule", ["released", "paired"])
def test_a_late_choice_hints_at_a_rise_only_where_the_rule_does_not_prefer_late_ones(rule: str, tmp_path: Path) -> None:
    folder = studies.study(tmp_path, autoattack=False)
    config = folder / "runs" / str(load_study(folder).of("AutoLoRa", "final")[0].name) / "config.yaml"
    config.write_text(config.read_text().replace("rule: released", f"rule: {rule}"))
    rewrite(folder, config.parent.name, lambda records: [*records[:-1], replace(records[-1], best_epoch=19)])
    study = load_study(folder)
    (course,) = [text for text in reasons(study, compare(study)) if text.startswith("AutoLoRa, seed 0:")]
    assert "the epoch chosen on validation was 19" in course
    assert ("may still have been rising" in course) == (rule == "released")


def test_of_equal_trials_the_first_is_the_winner_and_that_is_no_alarm(tmp_path: Path) -> None:
    folder = studies.study(tmp_path, autoattack=False)
    arm = "Vanilla RFT"
    trials = load_study(folder).of(arm, "search")[:2]
    best = trials[0].validation_accuracy

    assert best is not None

    def as_good(records: list[EpochRecord]) -> list[EpochRecord]:
        return [*records[:-1], replace(records[-1], best_robust_accuracy=best)]

    rewrite(folder, str(trials[1].name), as_good)
    rewrite(folder, "final-30", as_good)
    study = load_study(folder)
    text = search_summary(study, study.arm(arm))
    assert "2 trials share the highest accuracy; the first in the order of the grid won." in text
    assert "which is not the best finished trial" not in text
    assert "lr 0.01 (largest), weight_decay 1e-4 (largest); a better value may lie beyond it" in text
    assert "The final run on seed 0 reached the validation accuracy of the chosen trial again." in text
