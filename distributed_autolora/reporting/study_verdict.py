"""Who wins, by how much, and whether it can be claimed: sentences made from the numbers alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from distributed_autolora.reporting.history import compact, value
from distributed_autolora.reporting.markdown import counted, listed, p_value, per_cent, points
from distributed_autolora.reporting.study import AUTOATTACK, NATURAL, Study, StudyRun
from distributed_autolora.reporting.study_costs import mean_final_cost, search_cost
from distributed_autolora.reporting.study_statistics import Comparison
from distributed_autolora.reporting.study_tables import metric_label


def verdict(study: Study, comparisons: Sequence[Comparison]) -> str:
    """Returns the report's first paragraphs; the first sentence says whether the reference wins.

    The accuracy that decides is AutoAttack's where every compared arm has it, else the runs' own attack's.
    """
    if not study.references:
        return "This study compares its arms with no reference: there is no winner to name."
    if len(study.references) == 1:
        return _of_reference(study, study.references[0], comparisons)
    return _of_several(study, comparisons)


def reasons(study: Study, comparisons: Sequence[Comparison]) -> list[str]:
    """Returns what the runs' records say about the reference where it does not win, one sentence each."""
    losers = [name for name in study.references[:1] if _loses(study, name, comparisons)]
    if len(study.references) > 1:
        return []
    sentences = []
    for name in losers:
        sentences += [f"{study.arm(name).label}, seed {run.seed}: {_course(run)}." for run in study.judged(name)]
        sentences += [text for text, better in better_trials(study, name).values() if better]
    return sentences


def deciding_metric(study: Study, cells: Sequence[Comparison]) -> str:
    """Returns the accuracy that decides: AutoAttack's where all compared arms have it, else the next best."""
    baselines = {cell.baseline for cell in cells}
    order = [AUTOATTACK, *(m for m in study.metrics if m not in (AUTOATTACK, NATURAL)), NATURAL]
    complete = [m for m in order if {cell.baseline for cell in cells if cell.metric == m} == baselines]
    return complete[0] if complete else cells[0].metric


def _of_reference(study: Study, name: str, comparisons: Sequence[Comparison]) -> str:
    label = study.arm(name).label
    mine = [cell for cell in comparisons if cell.reference == name]
    if not mine:
        lacking = label if not study.judged(name) else "the arms it is compared with"
        return f"**No verdict yet on {label}**: no finished final run of {lacking}."
    metric = deciding_metric(study, mine)
    cells = sorted((cell for cell in mine if cell.metric == metric), key=lambda cell: cell.difference)
    notes = [_other(study, label, other, mine) for other in study.metrics if other != metric]
    if metric != AUTOATTACK:
        notes.append(
            "AutoAttack was not run on all of them; a gap between methods under PGD alone can be the attack's."
        )
    waiting = [arm.label for arm in study.arms if arm.reference == name and not study.judged(arm.name)]
    if waiting:
        notes.append(f"Not in this verdict for want of a finished final run: {listed(waiting)}.")
    lines = [f"- {note}" for note in (*filter(None, notes), *_price(study, name, cells))]
    return "\n\n".join([f"{_headline(study, label, cells)} {_claims(study, cells)}", "\n".join(lines)])


def _of_several(study: Study, comparisons: Sequence[Comparison]) -> str:
    """One line a reference, after how many of the comparisons it leads in all."""
    lines, leads, claimed, total = [], 0, 0, 0
    for name in study.references:
        mine = [cell for cell in comparisons if cell.reference == name]
        if not mine:
            lines.append(f"- {_of_reference(study, name, comparisons)}")
            continue
        cells = [cell for cell in mine if cell.metric == deciding_metric(study, mine)]
        cells.sort(key=lambda cell: cell.difference)
        total += len(cells)
        leads += sum(cell.difference > 0 for cell in cells)
        claimed += sum(cell.can_be_claimed for cell in cells)
        sure = sum(cell.can_be_claimed for cell in cells)
        lines.append(f"- {_headline(study, study.arm(name).label, cells)} {sure} of {len(cells)} can be claimed.")
    first = (
        f"**The reference is ahead in {leads} of {total} comparisons of robust accuracy; {claimed} of the {total} "
        "differences can be claimed**, after Holm's correction over all cells of the study."
    )
    return "\n\n".join([first, "\n".join(lines)]) if total else "\n".join(lines)


def _headline(study: Study, label: str, cells: Sequence[Comparison]) -> str:
    """Cells by difference, smallest first: the first baseline is the strongest."""
    accuracy = f"{metric_label(cells[0].metric)} accuracy"
    own = f"{per_cent(statistics.fmean(cells[0].reference_values))} %"
    strongest = cells[0]
    if strongest.difference > 0:
        over = listed([f"{study.arm(c.baseline).label} ({points(c.difference)} points)" for c in cells])
        sure = all(cell.can_be_claimed for cell in cells)
        first = (
            f"**{label} wins**" if sure else f"**{label} has the highest mean, which does not yet show that it wins**"
        )
        return f"{first}: {own} {accuracy} on average over {cells[0].seeds}, against {over}."
    other = study.arm(strongest.baseline).label
    if strongest.difference == 0:
        return f"**{label} does not win**: its mean {accuracy} of {own} equals that of {other}."
    theirs = per_cent(statistics.fmean(strongest.baseline_values))
    behind = [study.arm(c.baseline).label for c in cells if c.difference < 0]
    ahead = [f"{study.arm(c.baseline).label} ({points(c.difference)} points)" for c in cells if c.difference > 0]
    text = f"**{label} does not win here**: {own} {accuracy} on average over {strongest.seeds}, and {other} reaches "
    text += f"{theirs} % ({label} {points(strongest.difference)} points)."
    text += f" In all it is behind {listed(behind)}." if len(behind) > 1 else ""
    return text + (f" It is ahead of {listed(ahead)}." if ahead else "")


def _claims(study: Study, cells: Sequence[Comparison]) -> str:
    texts = []
    for cell in cells:
        pair = f"the difference to {study.arm(cell.baseline).label}"
        if cell.student is None:
            texts.append(f"{pair} cannot be tested ({cell.remark.removeprefix('undefined: ')})")
        elif cell.can_be_claimed:
            texts.append(f"{pair} can be claimed (p = {p_value(cell.student_holm)} after Holm's correction)")
        else:
            larger = max(cell.student_holm or 0.0, cell.welch_holm or 0.0)
            texts.append(f"{pair} cannot be claimed: {cell.remark} (p = {p_value(larger)} after Holm's correction)")
    text = "; ".join(texts)
    return f"{text[0].upper()}{text[1:]}."


def _other(study: Study, label: str, metric: str, cells: Sequence[Comparison]) -> str:
    """One sentence about an accuracy that does not decide, "" where it was not measured."""
    mine = [cell for cell in cells if cell.metric == metric]
    if not mine:
        return ""
    leads = []
    for cell in mine:
        sure = "can be claimed" if cell.can_be_claimed else "cannot be claimed"
        leads.append(f"{points(cell.difference)} points against {study.arm(cell.baseline).label} ({sure})")
    own = per_cent(statistics.fmean(mine[0].reference_values))
    return f"{metric_label(metric)[0].upper()}{metric_label(metric)[1:]} accuracy: {label} {own} %, {listed(leads)}."


def _price(study: Study, name: str, cells: Sequence[Comparison]) -> list[str]:
    base = mean_final_cost(study, name)
    sentences = []
    for cell in cells:
        search, final = search_cost(study, cell.baseline), mean_final_cost(study, cell.baseline)
        trials = study.of(cell.baseline, "search")
        if not trials or base is None or final is None or study.of(name, "search"):
            continue
        cost, unit = search + final, "image passes"
        ratio = cost.passes / base.passes if cost.passes and base.passes else None
        if ratio is None and base.worker_seconds > 0:
            ratio, unit = cost.worker_seconds / base.worker_seconds, "worker time"
        if ratio is not None:
            sentences.append(
                f"A searched {study.arm(cell.baseline).label} ({counted(len(trials), 'trial')} and one final run) took "
                f"{ratio:.1f} times the {unit} of one {study.arm(name).label} run."
            )
    return sentences


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
    last, halvings = run.history[-1], sum(bool(record.get("halved")) for record in run.history)
    epochs, best = len(run.history), last.get("best_epoch")
    text = f"{halvings} halvings took the learning rate to {compact(last['lr'])} in {epochs} epochs"
    if best is not None:
        rising = ", so it may still have been rising" if best > 0.9 * epochs else ""
        text += f"; the best epoch on validation was {best}{rising}"
    natural, robust = value(last, "natural_branch_accuracy"), run.validation_accuracy
    if natural is not None:
        text += f"; the low-rank branch ended at {per_cent(natural)} % natural training accuracy"
    if robust is not None and len(run.counts) > 1:
        gap = robust - next(c.accuracy for name, c in run.counts.items() if name.endswith(f"/{run.attack}"))
        text += f"; validation accuracy was {per_cent(gap)} points above test" if gap >= 0 else ""
    return text


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
