"""What the records of a study hint at about why its reference does not win."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from distributed_autolora.records import value
from distributed_autolora.reporting.format import attack_label, compact
from distributed_autolora.reporting.markdown import counted, per_cent, points
from distributed_autolora.reporting.study.loading import ROBUST, Study, StudyRun
from distributed_autolora.reporting.study.statistics import (
    Comparison,
    deciding_metric,
    standard_error,
    validation_images,
)


def reasons(study: Study, comparisons: Sequence[Comparison]) -> list[str]:
    """Returns one sentence for each hint where the only reference is behind in the deciding accuracy, else none."""
    if len(study.references) != 1 or not _loses(study, study.references[0], comparisons):
        return []
    name = study.references[0]
    sentences = [f"{study.arm(name).label}, seed {run.seed}: {_course(run)}." for run in study.judged(name)]
    sentences += [text for text, better in better_trials(study, name).values() if better]
    return [*sentences, *_optimism(study), *_noise(study, name)]


def better_trials(study: Study, name: str) -> dict[str, tuple[str, int]]:
    """Returns {arm: (sentence, trials)}: how many finished trials of an arm were better than its reference unsearched.

    Empty where the reference has no finished run on the search seed, or was searched itself.
    """
    own = [run.validation_accuracy for run in study.judged(name) if run.seed == study["search_seed"]]
    if not own or own[0] is None or study.of(name, "search"):
        return {}
    found = {}
    for arm in study.arms:
        trials = [r.validation_accuracy for r in study.of(arm.name, "search") if r.status == "finished"]
        better = sum(accuracy > own[0] for accuracy in trials if accuracy is not None)
        if arm.reference == name and trials:
            found[arm.name] = (
                f"{better} of {len(trials)} finished trials of {arm.label} reached a higher validation accuracy than "
                f"{study.arm(name).label} without a search on the same seed and validation images "
                f"({per_cent(own[0])} %).",
                better,
            )
    return found


def _loses(study: Study, name: str, comparisons: Sequence[Comparison]) -> bool:
    mine = [cell for cell in comparisons if cell.reference == name]
    if not mine:
        return False
    metric = deciding_metric(study, mine)
    return any(cell.difference <= 0 for cell in mine if cell.metric == metric)


def _course(run: StudyRun) -> str:
    """Returns how a run went, as far as its records can hint at a cause."""
    if not run.history:
        return "no history was kept"
    first, last, epochs = run.history[0], run.history[-1], len(run.history)
    # What is decided after the last epoch changes no epoch.
    halvings = sum(bool(record.get("halved")) for record in run.history[:-1])
    path = f"went from {compact(first['lr'])} to" if first["lr"] != last["lr"] else "stayed at"
    text = f"the learning rate {path} {compact(last['lr'])} in {counted(epochs, 'epoch')}"
    text += f" ({counted(halvings, 'halving')})" if halvings else ""
    chosen = last.get("best_epoch")
    if chosen is not None:
        # Rule "paired" keeps the newest state that is as good as the best: a late one is what it mostly chooses.
        is_late = chosen > 0.9 * epochs and run.automatic_rule() != "paired"
        rising = ", so it may still have been rising" if is_late else ""
        text += f"; the epoch chosen on validation was {chosen}{rising}"
    natural = value(last, "natural_branch_accuracy")
    if natural is not None:
        text += f"; the low-rank branch ended at {per_cent(natural)} % natural training accuracy"
    return text


def _optimism(study: Study) -> list[str]:
    """Returns by how much validation, which chose the epoch, flatters each arm."""
    gaps = []
    for arm in study.arms:
        pairs = [(run.validation_accuracy, run.counts.get(f"{ROBUST}{run.attack}")) for run in study.judged(arm.name)]
        known = [best - test.accuracy for best, test in pairs if best is not None and test is not None]
        gaps += [f"{arm.label} {points(statistics.fmean(known))} points"] if known else []
    return [f"Validation accuracy of the chosen epoch less test accuracy, mean over seeds: {', '.join(gaps)}."]


def _noise(study: Study, name: str) -> list[str]:
    """Returns how noisy the accuracy is that the reference's automatic learning rate follows; none for a fixed one."""
    images = validation_images(study)
    runs = [run for run in study.judged(name) if run.automatic_rule() is not None]
    if images is None or not runs or runs[0].validation_accuracy is None:
        return []
    error = 100 * standard_error(runs[0].validation_accuracy, images)
    return [
        f"The automatic learning rate of {study.arm(name).label} follows an accuracy on {images:,} validation images; "
        f"its standard error, {attack_label(runs[0].attack or '')}, is {error:.1f} points."
    ]
