"""Who wins, by how much, and whether it can be claimed: sentences made from the numbers alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from distributed_autolora.reporting.markdown import counted, listed, p_value, per_cent, points
from distributed_autolora.reporting.study.costs import mean_final_cost, search_cost
from distributed_autolora.reporting.study.format import metric_label
from distributed_autolora.reporting.study.loading import APGD, AUTOATTACK, NATURAL, Study
from distributed_autolora.reporting.study.statistics import Comparison, deciding_metric


def verdict(study: Study, comparisons: Sequence[Comparison]) -> str:
    """Returns the report's first paragraphs; the first sentence says whether the reference wins.

    The accuracy that decides is the robust one that most of the compared arms have, of equals the strongest attack's.
    """
    if not study.references:
        return "This study compares its arms with no reference: there is no winner to name."
    if len(study.references) == 1:
        return _of_reference(study, study.references[0], comparisons)
    return _of_several(study, comparisons)


def _of_reference(study: Study, name: str, comparisons: Sequence[Comparison]) -> str:
    label = study.arm(name).label
    mine = [cell for cell in comparisons if cell.reference == name]
    if not mine:
        lacking = label if not study.judged(name) else "the arms it is compared with"
        return f"**No verdict yet on {label}**: no finished final run of {lacking}."
    cells = _deciding(study, mine)
    metric = cells[0].metric
    notes = [_other(study, label, other, mine) for other in study.metrics if other != metric]
    if metric == APGD:
        notes.append("AutoAttack was not run on all of them; APGD-CE and APGD-T are the first two of its four attacks.")
    elif metric != AUTOATTACK:
        notes.append(
            "AutoAttack was not run on all of them; a gap between methods under PGD alone can be the attack's."
        )
    notes += _left_out(study, name, cells, mine)
    lines = [f"- {note}" for note in (*filter(None, notes), *_price(study, name, cells))]
    first = _headline(study, label, cells, sure=_surely_wins(cells, mine))
    return "\n\n".join([f"{first} {_claims(study, cells)}", "\n".join(lines)])


def _of_several(study: Study, comparisons: Sequence[Comparison]) -> str:
    """One line a reference, after how many of the comparisons it leads in all."""
    lines: list[str] = []
    counted_cells: list[Comparison] = []
    for name in study.references:
        mine = [cell for cell in comparisons if cell.reference == name]
        if not mine:
            lines.append(f"- {_of_reference(study, name, comparisons)}")
            continue
        cells = _deciding(study, mine)
        counted_cells += cells
        claimed = sum(cell.can_be_claimed for cell in cells)
        text = _headline(study, study.arm(name).label, cells, sure=_surely_wins(cells, mine))
        sentences = [text, f"{claimed} of {len(cells)} can be claimed.", *_left_out(study, name, cells, mine)]
        lines.append(f"- {' '.join(sentences)}")
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


def _deciding(study: Study, mine: Sequence[Comparison]) -> list[Comparison]:
    """Returns the cells that decide: of the most seeds first, among equals the strongest baseline first."""
    metric = deciding_metric(study, mine)
    cells = [cell for cell in mine if cell.metric == metric]
    return sorted(cells, key=lambda cell: (-len(cell.reference_values), cell.difference))


def _surely_wins(cells: Sequence[Comparison], mine: Sequence[Comparison]) -> bool:
    """Tells whether every deciding difference is a lead that can be claimed, and no robust accuracy says otherwise."""
    leads = all(cell.can_be_claimed and cell.difference > 0 for cell in cells)
    return leads and not any(cell.difference < 0 for cell in mine if cell.metric != NATURAL)


def _left_out(study: Study, name: str, cells: Sequence[Comparison], mine: Sequence[Comparison]) -> list[str]:
    """Names, by what they lack, the arms that a reference is to be compared with and that are not in its verdict."""
    decided, compared = ({cell.baseline for cell in part} for part in (cells, mine))
    absent: dict[str, list[str]] = {}
    for arm in study.arms:
        if arm.reference != name or arm.name in decided:
            continue
        lacking = "a finished final run"
        if arm.name in compared:
            lacking = f"their {metric_label(cells[0].metric)} accuracy"
        elif study.judged(arm.name):
            lacking = f"a seed in common with {study.arm(name).label}"
        absent.setdefault(lacking, []).append(arm.label)
    return [f"Not in this verdict for want of {lacking}: {listed(labels)}." for lacking, labels in absent.items()]


def _headline(study: Study, label: str, cells: Sequence[Comparison], *, sure: bool) -> str:
    """Says whether the reference wins, against the first cell's baseline: the strongest of those with the most seeds.

    Arms with fewer seeds follow it, marked, and none that the reference is not ahead of is passed over.

    Args:
        study: the study.
        label: of the reference.
        cells: from `_deciding`.
        sure: whether a lead is a win, from `_surely_wins`.
    """
    strongest = cells[0]
    accuracy = f"{metric_label(strongest.metric)} accuracy"
    own = f"{per_cent(statistics.fmean(strongest.reference_values))} %"
    ahead = [_with_points(study, cell, strongest) for cell in cells if cell.difference > 0]
    if strongest.difference > 0:
        first = f"{_rank(label, cells, sure=sure)}: {own} {accuracy} {_over_seeds(strongest)}, against {listed(ahead)}."
        others = [_with_points(study, cell, strongest) for cell in cells if cell.difference <= 0]
        return first + (f" On fewer seeds it is not ahead of {listed(others)}." if others else "")
    other = study.arm(strongest.baseline).label
    if strongest.difference == 0:
        return f"**{label} does not win**: its mean {accuracy} of {own} equals that of {other}."
    theirs = per_cent(statistics.fmean(strongest.baseline_values))
    behind = [_with_seeds(study, cell, strongest) for cell in cells if cell.difference < 0]
    text = f"**{label} does not win here**: {own} {accuracy} {_over_seeds(strongest)}, and {other} reaches "
    text += f"{theirs} % ({label} {points(strongest.difference)} points)."
    text += f" In all it is behind {listed(behind)}." if len(behind) > 1 else ""
    return text + (f" It is ahead of {listed(ahead)}." if ahead else "")


def _rank(label: str, cells: Sequence[Comparison], *, sure: bool) -> str:
    """Returns what a lead over the first cell's baseline makes of the reference; a mean is highest among its seeds'."""
    if sure:
        return f"**{label} wins**"
    among = "" if all(cell.difference > 0 for cell in cells) else f" over {cells[0].seeds}"
    return f"**{label} has the highest mean{among}, which does not yet show that it wins**"


def _over_seeds(cell: Comparison) -> str:
    """Returns "on average over three seeds", "on one seed"."""
    return "on one seed" if len(cell.reference_values) == 1 else f"on average over {cell.seeds}"


def _with_points(study: Study, cell: Comparison, most: Comparison) -> str:
    """Returns "TWINS (+1.2 points)", "TWINS (+1.2 points on one seed)" where another cell has more seeds."""
    return f"{study.arm(cell.baseline).label} ({_points(cell, most)})"


def _with_seeds(study: Study, cell: Comparison, most: Comparison) -> str:
    """Returns "TWINS", "TWINS (one seed)" where another cell has more seeds."""
    return study.arm(cell.baseline).label + (f" ({cell.seeds})" if _has_fewer(cell, most) else "")


def _points(cell: Comparison, most: Comparison) -> str:
    """Returns "+1.2 points", "+1.2 points on one seed" where another cell has more seeds."""
    return f"{points(cell.difference)} points" + (f" on {cell.seeds}" if _has_fewer(cell, most) else "")


def _has_fewer(cell: Comparison, most: Comparison) -> bool:
    return len(cell.reference_values) < len(most.reference_values)


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
    most = max(mine, key=lambda cell: len(cell.reference_values))
    mixed = len({cell.can_be_claimed for cell in mine}) > 1
    leads = []
    for cell in mine:
        sure = f" ({_sure(cell)})" if mixed else ""
        leads.append(f"{_points(cell, most)} against {study.arm(cell.baseline).label}{sure}")
    all_of_them = ""
    if len(mine) == 1:
        all_of_them = f" ({_sure(mine[0])})"
    elif not mixed:
        all_of_them = " (each can be claimed)" if mine[0].can_be_claimed else " (none can be claimed)"
    own = f"{per_cent(statistics.fmean(most.reference_values))} %"
    own += f" over {most.seeds}" if any(_has_fewer(cell, most) for cell in mine) else ""
    name = metric_label(metric)
    return f"{name[0].upper()}{name[1:]} accuracy: {label} {own}, {listed(leads)}{all_of_them}."


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
