"""The searches of a study: every trial, how far the settings matter, and what to know about the chosen ones."""

from __future__ import annotations

from collections.abc import Callable

from distributed_autolora.reporting.markdown import NONE, counted, per_cent, table
from distributed_autolora.reporting.study.format import error_text, number, settings_text
from distributed_autolora.reporting.study.loading import Arm, Study, StudyRun
from distributed_autolora.reporting.study.statistics import standard_error, validation_images


def search_table(study: Study, arm: Arm) -> str:
    """Returns every trial of an arm's search with its validation accuracy, or why it has none."""
    chosen = [run.settings for run in study.of(arm.name, "final")]
    rows = []
    for run in study.of(arm.name, "search"):
        accuracy = run.validation_accuracy
        text = per_cent(accuracy) if accuracy is not None and run.status in ("finished", "stopped_early") else NONE
        mark = "**chosen**" if run.settings in chosen else ""
        rows.append([*(number(run.settings.get(key, "")) for key in arm.grid), text, _trial_note(run) or mark])
    return table([*(key.split(".")[-1] for key in arm.grid), "validation, %", ""], rows)


def search_summary(study: Study, arm: Arm) -> str:
    """Returns how far the arm's accuracy moves with its settings, and what is to be known about the chosen ones."""
    trials = study.of(arm.name, "search")
    finished = [run for run in trials if run.status == "finished" and run.validation_accuracy is not None]
    parts = [f"{counted(len(trials), 'trial')}, {len(finished)} finished"]
    for status, word in (("stopped_early", "stopped early"), ("failed", "failed"), ("running", "running")):
        count = sum(run.status == status for run in trials)
        parts += [f"{count} {word}"] if count else []
    if finished:
        worst, best = min(finished, key=_accuracy), max(finished, key=_accuracy)
        parts.append(
            f"validation accuracy from {per_cent(_accuracy(worst))} % ({settings_text(worst.settings)}) to "
            f"{per_cent(_accuracy(best))} % ({settings_text(best.settings)}), a range of "
            f"{100 * (_accuracy(best) - _accuracy(worst)):.1f} points"
        )
    return " ".join([f"**{arm.label}**: {', '.join(parts)}.", *_about_the_chosen(study, arm, finished)])


def chance(study: Study) -> str:
    """Returns how far a trial may be lucky, and where that luck is seen again; begins with a space."""
    text, images = "", validation_images(study)
    best = max((run.validation_accuracy or 0.0 for run in study.runs if run.phase == "search"), default=0.0)
    if images and best:
        text = (
            f" On {images:,} validation images an accuracy of {per_cent(best)} % has a standard error of "
            f"{100 * standard_error(best, images):.1f} points, so small differences between trials may be chance."
        )
    if study["search_seed"] in (study["seeds"] or []):
        text += (
            f" Seed {study['search_seed']} is also a final seed: a winner's values on it may owe something to its "
            "having been chosen there."
        )
    return text


def _about_the_chosen(study: Study, arm: Arm, finished: list[StudyRun]) -> list[str]:
    """Returns what a reader should know before trusting the choice of a search; nothing before there is one."""
    final = [run for run in study.of(arm.name, "final") if run.settings]
    if not final or not finished:
        return []
    settings, best = final[0].settings, max(map(_accuracy, finished))
    winners = [run for run in finished if _accuracy(run) == best]
    edges = [
        f"{key.split('.')[-1]} {number(settings[key])} ({'largest' if settings[key] == max(values) else 'smallest'})"
        for key, values in arm.grid.items()
        if len(values) > 1 and settings.get(key) in (min(values), max(values))
    ]
    sentences = []
    if settings not in [run.settings for run in winners]:
        sentences.append(f"**The final runs use {settings_text(settings)}, which is not the best finished trial.**")
    elif len(winners) > 1:
        sentences.append(f"{len(winners)} trials share the highest accuracy; the first in the order of the grid won.")
    if edges:
        sentences.append(f"At the edge of the grid: {', '.join(edges)}; a better value may lie beyond it.")
    return [*sentences, *_repeated(study, finished, final)]


def _repeated(study: Study, finished: list[StudyRun], final: list[StudyRun]) -> list[str]:
    """Returns whether the final run on the search seed did what the chosen trial had done."""
    again = next((run for run in final if run.seed == study["search_seed"] and run.status == "finished"), None)
    trial = next((run for run in finished if again is not None and run.settings == again.settings), None)
    if again is None or trial is None or again.validation_accuracy is None:
        return []
    if again.validation_accuracy == trial.validation_accuracy:
        return [f"The final run on seed {again.seed} reached the validation accuracy of the chosen trial again."]
    told = f"{per_cent(again.validation_accuracy)} %, not {per_cent(_accuracy(trial))} %"
    return [f"The final run on seed {again.seed} did not repeat the validation accuracy of the chosen trial ({told})."]


def _accuracy(run: StudyRun) -> float:
    return run.validation_accuracy or 0.0


def _trial_note(run: StudyRun) -> str:
    notes: dict[str, Callable[[], str]] = {
        "failed": lambda: f"failed: {error_text(run)}",
        "stopped_early": lambda: f"stopped after epoch {len(run.history)}",
        "running": lambda: "running",
        "pending": lambda: "pending",
    }
    return notes.get(run.status, str)()
