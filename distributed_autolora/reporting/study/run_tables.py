"""The runs of a study: their cost, and tables of it, of schedules, of the hyperparameter search, of what is missing."""

import statistics
from collections.abc import Iterable
from typing import NamedTuple

from distributed_autolora.records import ArmRecord, EpochRecord, settings_text
from distributed_autolora.reporting.format import NONE, compact, counted, duration, number, per_cent, table
from distributed_autolora.reporting.study.loading import StudyResults, StudyRun


class Cost(NamedTuple):
    """Training and validation; the test is not in it."""

    worker_seconds: float = 0.0
    forward_passes: float = 0
    backward_passes: float = 0

    @property
    def passes(self) -> float:
        """Forward plus backward passes, each of one image."""
        return self.forward_passes + self.backward_passes


def cost_of(run: StudyRun) -> Cost:
    """Returns the cost of a run: from its result, or of the epochs it finished."""
    if run.result is None:
        return summed(Cost(e.epoch_seconds * e.num_workers, e.passes.forward, e.passes.backward) for e in run.history)
    return Cost(run.result.cost.worker_seconds, run.result.cost.forward_passes, run.result.cost.backward_passes)


def summed(costs: Iterable[Cost]) -> Cost:
    """Returns several costs together."""
    return Cost(*map(sum, zip(Cost(), *costs, strict=True)))


def total(runs: Iterable[StudyRun]) -> Cost:
    """Returns the cost of several runs together, failed and stopped ones included."""
    return summed(map(cost_of, runs))


def mean_final_cost(study: StudyResults, arm: str) -> Cost | None:
    """Returns the mean cost of an arm's finished final runs, None where there is none."""
    runs = study.evaluated(arm)
    if not runs:
        return None
    seconds, *passes = (part / len(runs) for part in total(runs))
    return Cost(seconds, *map(round, passes))


def cost_table(study: StudyResults) -> str:
    """Returns, for each arm, what its search, one final run, and both together cost."""
    rows = []
    alone = next((arm for arm in (study.record.reference, *study.references) if arm in study.references), None)
    base = mean_final_cost(study, alone) if alone else None
    for arm in study.arms:
        trials, finished = study.of(arm.id, "search"), study.evaluated(arm.id)
        search, final = total(trials), mean_final_cost(study, arm.id)
        if trials:
            begun = sum(bool(run.history) for run in trials)
            of = "" if begun == len(trials) else f"{begun} of "
            rows.append([arm.label, f"search, {of}{counted(len(trials), 'trial')}", *_cost_cells(search, base)])
        if final:
            rows.append([arm.label, f"one final run, mean of {len(finished)}", *_cost_cells(final, base)])
        if trials and final:
            rows.append([arm.label, "**search and one final run**", *_cost_cells(summed([search, final]), base)])
    times = f"times {study.arm(alone).label}: time" if alone else "times: time"
    return table(["method", "", "worker time", "forward", "backward", times, "passes"], rows)


def schedule_table(study: StudyResults) -> str | None:
    """Returns what the schedules did in every final run that has at least one epoch, None without any."""
    runs = [run for run in study.final() if run.history]
    rows = [[study.arm(run.arm).label, str(run.seed), *_schedule_cells(run.history)] for run in runs]
    header = ["method", "seed", "epochs", "selected", "learning rate", "after epoch", "lambda1", "lambda2"]
    return table(header, rows) if rows else None


def automatic_rules(study: StudyResults) -> str:
    """Returns "rule `paired`" of the final runs with an automatic schedule, all of them if there are more; else ""."""
    runs = (run for run in study.runs if run.phase == "final" and run.history)
    schedules = [run.config().get("schedule") or {} for run in runs]
    rules = dict.fromkeys(found["rule"] for found in schedules if found.get("name") == "automatic")
    return f"rule{'s' * (len(rules) > 1)} {', '.join(f'`{rule}`' for rule in rules)}" if rules else ""


def search_table(study: StudyResults, arm: ArmRecord) -> str:
    """Returns every trial of an arm's search with its validation accuracy, or why it has none; "" without a trial."""
    chosen = [run.settings for run in study.of(arm.id, "final")]
    rows = []
    for run in study.of(arm.id, "search"):
        known = run.validation_accuracy if run.status in ("finished", "stopped_early") else None
        accuracy = NONE if known is None else per_cent(known)
        note = _trial_note(run) or ("**best trial**" if run.settings in chosen else "")
        rows.append([*(number(run.settings.get(key, "")) for key in arm.grid), accuracy, note])
    return table([*(key.split(".")[-1] for key in arm.grid), "validation, %", ""], rows) if rows else ""


def search_sentence(study: StudyResults, arm: ArmRecord) -> str:
    """Returns how many trials finished, the range of their accuracies, the best one, and whether it is at an edge."""
    trials = study.of(arm.id, "search")
    finished = [run.validation_accuracy for run in trials if run.status == "finished"]
    scores = [score for score in finished if score is not None]
    text = f"{arm.label}: {len(scores)} of {counted(len(trials), 'trial')} finished"
    if scores:
        text += f", validation accuracy {per_cent(min(scores))} to {per_cent(max(scores))} %"
    chosen = next((run.settings for run in study.of(arm.id, "final") if run.settings), None)
    if chosen is None:
        return f"{text}."
    edges = [
        key.split(".")[-1]
        for key, values in arm.grid.items()
        if len(values) > 1 and chosen.get(key) in (min(values), max(values))
    ]
    edge = f", at the edge of the grid in {', '.join(edges)}" if edges else ""
    ties = scores.count(max(scores, default=0.0))
    first = f", first of {ties} equal ones" if ties > 1 else ""
    return f"{text}; best trial: {settings_text(chosen)}{first}{edge}."


def missing(study: StudyResults) -> list[str]:
    """Returns one line for everything that a finished study would have and this one has not."""
    lines = []
    for run in study.runs:
        name = f"{study.arm(run.arm).label} {run.phase} seed {run.seed} {settings_text(run.settings)}".rstrip()
        if run.status == "failed":
            lines.append(f"failed: {name}: `{_error_text(run)}`")
        elif run.status == "finished" and run.result is None:
            lines.append(f"finished, but without a result.json: {name}")
        elif run.status == "running" or (run.status == "pending" and run.history):
            lines.append(f"{run.status} after {counted(len(run.history), 'epoch')}: {name}")
    for arm in study.arms:
        for phase in ("search", "final"):
            runs = study.of(arm.id, phase)
            pending = sum(run.status == "pending" and not run.history for run in runs)
            lines += [f"pending: {arm.label} {phase}, {pending} of {counted(len(runs), 'run')}"] if pending else []
        seeds = {run.seed for run in study.of(arm.id, "final")}
        absent = [str(seed) for seed in study.record.seeds if seed not in seeds]
        lines += [f"not started: {arm.label} final, seed {', '.join(absent)}"] if absent else []
    return lines


def _trial_note(run: StudyRun) -> str:
    if run.status == "failed":
        return f"failed: {_error_text(run)}"
    if run.status == "stopped_early":
        return f"stopped after epoch {len(run.history)}"
    return "" if run.status == "finished" else run.status


def _cost_cells(cost: Cost, base: Cost | None) -> list[str]:
    time = f"{cost.worker_seconds / base.worker_seconds:.1f}" if base and base.worker_seconds else NONE
    passes = f"{cost.passes / base.passes:.1f}" if base and base.passes else NONE
    return [duration(cost.worker_seconds), _count(cost.forward_passes), _count(cost.backward_passes), time, passes]


def _count(passes: float) -> str:
    return f"{passes:,}" if passes < 10**6 else f"{passes / 1e6:,.2f} M"


def _schedule_cells(history: list[EpochRecord]) -> list[str]:
    rates = [record.lr for record in history]
    changed = f" to {compact(rates[-1])}, mean {compact(statistics.fmean(rates))}" if len(set(rates)) > 1 else ""
    weights = zip(*((record.natural_weight, record.kl_weight) for record in (history[0], history[-1])), strict=True)
    cells = [NONE if None in (first, last) else f"{first:.2f} to {last:.2f}" for first, last in weights]
    events = _events(history) or NONE
    return [str(len(history)), str(history[-1].best_epoch), compact(rates[0]) + changed, events, *cells]


def _events(history: list[EpochRecord]) -> str:
    """Returns "halved 9 (back to 7), 13; x 0.1 17": what was done after which epoch."""
    done: dict[str, list[str]] = {}
    for record in history if history[-1].stopped else history[:-1]:
        back = f" (back to {record.restored_epoch})" if record.restored else ""
        if record.halved:
            done.setdefault("halved", []).append(f"{record.epoch}{back}")
        elif record.next_lr < record.lr:
            done.setdefault(f"x {record.next_lr / record.lr:.2g}", []).append(f"{record.epoch}{back}")
        if record.stopped:
            done.setdefault("stopped", []).append(str(record.epoch))
    return "; ".join(f"{what} {', '.join(epochs)}" for what, epochs in done.items())


def _error_text(run: StudyRun) -> str:
    text = " ".join((run.error or "no error was recorded").split()).replace("`", "'")
    return text if len(text) <= 160 else f"{text[:157]}..."
