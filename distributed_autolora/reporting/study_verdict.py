"""Who wins, by how much, and whether it can be claimed: sentences made from the numbers alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from distributed_autolora.reporting.markdown import counted, listed, p_value, per_cent, points
from distributed_autolora.reporting.study import APGD, AUTOATTACK, NATURAL, Study
from distributed_autolora.reporting.study_costs import mean_final_cost, search_cost
from distributed_autolora.reporting.study_statistics import Comparison
from distributed_autolora.reporting.study_tables import metric_label


def verdict(study: Study, comparisons: Sequence[Comparison]) -> str:
    """Returns the report's first paragraphs; the first sentence says whether the reference wins.

    The accuracy that decides is AutoAttack's where every compared arm has it, else that under its first two attacks,
    else the runs' own attack's.
    """
    if not study.references:
        return "This study compares its arms with no reference: there is no winner to name."
    if len(study.references) == 1:
        return _of_reference(study, study.references[0], comparisons)
    return _of_several(study, comparisons)


def deciding_metric(study: Study, cells: Sequence[Comparison]) -> str:
    """Returns the accuracy that decides: the robust one that most arms have, of equals the strongest attack's."""
    compared = {m: len({cell.baseline for cell in cells if cell.metric == m}) for m in study.metrics}
    strong = [m for m in (AUTOATTACK, APGD) if compared.get(m)]
    others = [m for m in compared if m not in (AUTOATTACK, APGD, NATURAL) and compared[m]]
    return max([*strong, *others], key=compared.__getitem__, default=NATURAL)


def _of_reference(study: Study, name: str, comparisons: Sequence[Comparison]) -> str:
    label = study.arm(name).label
    mine = [cell for cell in comparisons if cell.reference == name]
    if not mine:
        lacking = label if not study.judged(name) else "the arms it is compared with"
        return f"**No verdict yet on {label}**: no finished final run of {lacking}."
    metric = deciding_metric(study, mine)
    cells = sorted((cell for cell in mine if cell.metric == metric), key=lambda cell: cell.difference)
    notes = [_other(study, label, other, mine) for other in study.metrics if other != metric]
    if metric == APGD:
        notes.append("AutoAttack was not run on all of them; APGD-CE and APGD-T are the first two of its four attacks.")
    elif metric != AUTOATTACK:
        notes.append(
            "AutoAttack was not run on all of them; a gap between methods under PGD alone can be the attack's."
        )
    waiting = [arm.label for arm in study.arms if arm.reference == name and not study.judged(arm.name)]
    if waiting:
        notes.append(f"Not in this verdict for want of a finished final run: {listed(waiting)}.")
    unmeasured = {cell.baseline for cell in mine} - {cell.baseline for cell in cells}
    if unmeasured:
        names = listed([arm.label for arm in study.arms if arm.name in unmeasured])
        notes.append(f"Not in this verdict for want of their {metric_label(metric)} accuracy: {names}.")
    lines = [f"- {note}" for note in (*filter(None, notes), *_price(study, name, cells))]
    sure = all(cell.can_be_claimed for cell in cells) and not any(
        cell.difference < 0 for cell in mine if cell.metric != NATURAL
    )
    return "\n\n".join([f"{_headline(study, label, cells, sure=sure)} {_claims(study, cells)}", "\n".join(lines)])


def _of_several(study: Study, comparisons: Sequence[Comparison]) -> str:
    """One line a reference, after how many of the comparisons it leads in all."""
    lines: list[str] = []
    counted_cells: list[Comparison] = []
    for name in study.references:
        mine = [cell for cell in comparisons if cell.reference == name]
        if not mine:
            lines.append(f"- {_of_reference(study, name, comparisons)}")
            continue
        cells = [cell for cell in mine if cell.metric == deciding_metric(study, mine)]
        cells.sort(key=lambda cell: cell.difference)
        counted_cells += cells
        claimed = sum(cell.can_be_claimed for cell in cells)
        text = _headline(study, study.arm(name).label, cells, sure=claimed == len(cells))
        lines.append(f"- {text} {claimed} of {len(cells)} can be claimed.")
    if not counted_cells:
        return "\n".join(lines)
    leads = [cell for cell in counted_cells if cell.difference > 0]
    behind = [cell for cell in counted_cells if cell.difference < 0]
    sure_leads, sure_behind = (sum(cell.can_be_claimed for cell in part) for part in (leads, behind))
    first = (
        f"**The reference is ahead in {len(leads)} of {len(counted_cells)} comparisons of robust accuracy, of which "
        f"{sure_leads} can be claimed, and behind in {len(behind)}, of which {sure_behind} can be claimed**, after "
        "Holm's correction over all cells of the study."
    )
    return "\n\n".join([first, "\n".join(lines)])


def _headline(study: Study, label: str, cells: Sequence[Comparison], *, sure: bool) -> str:
    """Cells by difference, smallest first: the first baseline is the strongest.

    Sure is a lead only where every difference can be claimed and no other robust accuracy contradicts it.
    """
    accuracy = f"{metric_label(cells[0].metric)} accuracy"
    own = f"{per_cent(statistics.fmean(cells[0].reference_values))} %"
    strongest = cells[0]
    if strongest.difference > 0:
        over = listed([f"{study.arm(c.baseline).label} ({points(c.difference)} points)" for c in cells])
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
    """What can be said of every difference, its direction included; equal sentences are said once."""
    others: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        others.setdefault(_claim(cell), []).append(study.arm(cell.baseline).label)
    return " ".join(f"{before} {listed(labels)} {after}." for (before, after), labels in others.items())


def _claim(cell: Comparison) -> tuple[str, str]:
    """What is said of one difference, before and after the name of the other arm."""
    before = f"That it is {'ahead of' if cell.difference > 0 else 'behind'}"
    if cell.difference == 0:
        return "Its mean and that of", "are the same"
    if cell.student is None:
        return before, f"cannot be tested ({cell.remark.removeprefix('undefined: ')})"
    larger = max(cell.student_holm or 0.0, cell.welch_holm or 0.0)
    said = "can be claimed" if cell.can_be_claimed else f"cannot be claimed: {cell.remark}"
    return before, f"{said} (p = {p_value(larger)} after Holm's correction)"


def _other(study: Study, label: str, metric: str, cells: Sequence[Comparison]) -> str:
    """One sentence about an accuracy that does not decide, "" where it was not measured."""
    mine = [cell for cell in cells if cell.metric == metric]
    if not mine:
        return ""
    mixed = len({cell.can_be_claimed for cell in mine}) > 1
    leads = []
    for cell in mine:
        sure = f" ({_sure(cell)})" if mixed else ""
        leads.append(f"{points(cell.difference)} points against {study.arm(cell.baseline).label}{sure}")
    all_of_them = ""
    if len(mine) == 1:
        all_of_them = f" ({_sure(mine[0])})"
    elif not mixed:
        all_of_them = " (each can be claimed)" if mine[0].can_be_claimed else " (none can be claimed)"
    own = per_cent(statistics.fmean(max(mine, key=lambda cell: len(cell.reference_values)).reference_values))
    name = metric_label(metric)
    return f"{name[0].upper()}{name[1:]} accuracy: {label} {own} %, {listed(leads)}{all_of_them}."


def _sure(cell: Comparison) -> str:
    return "can be claimed" if cell.can_be_claimed else "cannot be claimed"


def _price(study: Study, name: str, cells: Sequence[Comparison]) -> list[str]:
    """What each search cost in runs of the reference; the winner is one of its trials, so no final run is added."""
    base = mean_final_cost(study, name)
    sentences = []
    for cell in cells:
        trials, label = study.of(cell.baseline, "search"), study.arm(cell.baseline).label
        if not trials or base is None or study.of(name, "search"):
            continue
        search, unit = search_cost(study, cell.baseline), "image passes"
        ratio = search.passes / base.passes if search.passes and base.passes else None
        if ratio is None and base.worker_seconds > 0:
            ratio, unit = search.worker_seconds / base.worker_seconds, "worker time"
        if ratio is not None:
            sentences.append(
                f"The search for the settings of {label} ({counted(len(trials), 'trial')}, the winner among them) took "
                f"{ratio:.1f} times the {unit} of one {study.arm(name).label} run."
            )
    return sentences
