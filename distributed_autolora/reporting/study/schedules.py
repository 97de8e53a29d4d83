"""What happened inside the runs of a study: schedules, searches, costs, what is missing; as Markdown tables."""

from __future__ import annotations

import json
import statistics
from typing import Any

from distributed_autolora.records import series, value
from distributed_autolora.reporting.format import compact, duration
from distributed_autolora.reporting.markdown import NONE, counted, table
from distributed_autolora.reporting.study.costs import Cost, mean_final_cost, search_cost
from distributed_autolora.reporting.study.format import error_text, settings_text
from distributed_autolora.reporting.study.loading import Study

_SIMILARITY = "gradient_similarity"


def cost_table(study: Study) -> str:
    """Returns, for each arm, what its search, one final run, and both together cost."""
    rows = []
    alone = next((name for name in (study["reference"], *study.references) if name in study.references), None)
    base = mean_final_cost(study, alone) if alone else None
    for arm in study.arms:
        search, final = search_cost(study, arm.name), mean_final_cost(study, arm.name)
        trials, judged = study.of(arm.name, "search"), study.judged(arm.name)
        if trials:
            begun = sum(bool(run.history) for run in trials)
            of = "" if begun == len(trials) else f"{begun} of "
            rows.append([arm.label, f"search, {of}{counted(len(trials), 'trial')}", *_cost_cells(search, base)])
        if final:
            rows.append([arm.label, f"one final run, mean of {len(judged)}", *_cost_cells(final, base)])
        if trials and final:
            rows.append([arm.label, "**search and one final run**", *_cost_cells(search + final, base)])
    times = f"times {study.arm(alone).label}: time" if alone else "times: time"
    header = ["method", "", "worker time", "forward", "backward", times, "passes"]
    return table(header, rows)


def schedule_table(study: Study) -> str | None:
    """Returns what the schedules did in every final run that has at least one epoch, None without any."""
    rows = []
    for arm in study.arms:
        for run in study.of(arm.name, "final"):
            rows += [[arm.label, str(run.seed), *_schedule_cells(run.history)]] if run.history else []
    header = ["method", "seed", "epochs", "chosen", "learning rate", "after epoch", "lambda1", "lambda2"]
    return table(header, rows) if rows else None


def automatic_rules(study: Study) -> str:
    """Returns "rule `paired`" of the final runs with an automatic schedule, all of them if there are more; else ""."""
    rules = {run.automatic_rule(): None for run in study.runs if run.phase == "final" and run.history}
    named = [f"`{rule}`" for rule in rules if rule is not None]
    return f"{'rule' if len(named) == 1 else 'rules'} {', '.join(named)}" if named else ""


def similarity_table(study: Study) -> str | None:
    """Returns the gradient similarity of each arm at the first, the middle and the last epoch; None without any."""
    rows = []
    for arm in study.arms:
        for run in study.of(arm.name, "final"):
            known = [(record["epoch"], value(record, _SIMILARITY)) for record in run.history]
            known = [(epoch, similarity) for epoch, similarity in known if similarity is not None]
            if known:
                picked = (known[0], known[len(known) // 2], known[-1])
                rows.append([arm.label, str(run.seed), *(f"{s:.3f} (epoch {epoch})" for epoch, s in picked)])
    return table(["method", "seed", "first", "middle", "last"], rows) if rows else None


def missing(study: Study) -> list[str]:
    """Returns one line for everything that a finished study would have and this one has not."""
    lines = []
    for run in study.runs:
        name = f"{study.arm(run.arm).label}, {run.phase}, seed {run.seed}"
        name += f", {settings_text(run.settings)}" if run.settings else ""
        if run.status == "failed":
            lines.append(f"failed: {name}: `{error_text(run)}`")
        elif run.status == "finished" and run.result is None:
            lines.append(f"said to be finished, but without a result.json: {name}")
        elif run.status == "running" or (run.status == "pending" and run.history):
            after = f" (after {counted(len(run.history), 'epoch')})" if run.history else ""
            lines.append(f"{run.status}{after}: {name}")
    for arm in study.arms:
        for phase in ("search", "final"):
            runs = study.of(arm.name, phase)
            pending = sum(run.status == "pending" and not run.history for run in runs)
            lines += [f"pending: {arm.label}, {phase}, {pending} of {counted(len(runs), 'run')}"] if pending else []
        seeds = {run.seed for run in study.of(arm.name, "final")}
        absent = [str(seed) for seed in study["seeds"] or [] if seed not in seeds]
        lines += [f"not started: {arm.label}, final, seed {', '.join(absent)}"] if absent else []
        lines += [f"not started: {arm.label}, search"] if arm.searched and not study.of(arm.name, "search") else []
    return lines


def is_unfinished(study: Study) -> bool:
    """Tells whether some final run has no accuracy yet, or some trial is still to end; failed trials do not count."""
    seeds = study["seeds"] or sorted({run.seed for run in study.runs if run.phase == "final"})
    judged = all({run.seed for run in study.judged(arm.name)} >= set(seeds) for arm in study.arms)
    waiting = any(run.status in ("pending", "running") for run in study.runs)
    return waiting or not judged


def chosen_settings(study: Study) -> str:
    """Returns the settings that the final runs of each searched arm used, as JSON that a config takes."""
    lines = []
    for arm in study.arms:
        chosen = {json.dumps(run.settings) for run in study.of(arm.name, "final") if run.settings}
        lines += [f"- {arm.label}: `{text}`" for text in sorted(chosen)]
    return "\n".join(lines)


def _cost_cells(cost: Cost, base: Cost | None) -> list[str]:
    time, passes = NONE, NONE
    if base is not None and base.worker_seconds > 0:
        time = f"{cost.worker_seconds / base.worker_seconds:.1f}"
    if base is not None and base.passes and cost.passes is not None:
        passes = f"{cost.passes / base.passes:.1f}"
    return [duration(cost.worker_seconds), _count(cost.forward_passes), _count(cost.backward_passes), time, passes]


def _count(passes: int | None) -> str:
    return "not recorded" if passes is None else f"{passes:,}" if passes < 10**6 else f"{passes / 1e6:,.2f} M"


def _schedule_cells(history: list[dict[str, Any]]) -> list[str]:
    rates = series(history, "lr")
    return [
        str(len(history)),
        str(history[-1].get("best_epoch", NONE)),
        _rates(rates),
        _events(history) or "nothing",
        _from_to(history, "natural_weight"),
        _from_to(history, "kl_weight"),
    ]


def _rates(rates: list[float]) -> str:
    """Returns "0.01 to 1e-4, mean 0.00531": how much a run could learn in all; "0.01" where nothing changed."""
    if len(set(rates)) == 1:
        return compact(rates[0])
    return f"{compact(rates[0])} to {compact(rates[-1])}, mean {compact(statistics.fmean(rates))}"


def _events(history: list[dict[str, Any]]) -> str:
    """Returns "halved 9 (back to 7), 13; x 0.1 17": what was done after which epoch."""
    done: dict[str, list[str]] = {}
    for record in history[:-1] if not history[-1].get("stopped") else history:
        lr, after = value(record, "lr"), value(record, "next_lr")
        back = f" (back to {record['restored_epoch']})" if record.get("restored") else ""
        if record.get("halved"):
            done.setdefault("halved", []).append(f"{record['epoch']}{back}")
        elif lr and after is not None and after < lr:
            done.setdefault(f"x {after / lr:.2g}", []).append(f"{record['epoch']}{back}")
        if record.get("stopped"):
            done.setdefault("stopped", []).append(str(record["epoch"]))
    return "; ".join(f"{what} {', '.join(epochs)}" for what, epochs in done.items())


def _from_to(history: list[dict[str, Any]], key: str) -> str:
    first, last = value(history[0], key), value(history[-1], key)
    return NONE if first is None or last is None else f"{first:.2f} to {last:.2f}"
