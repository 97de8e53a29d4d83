"""The tables of a study's report: accuracies beside the paper's, tests, intervals, paired counts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from distributed_autolora.reporting import paper_results
from distributed_autolora.reporting.history import attack_label
from distributed_autolora.reporting.markdown import NONE, counted, p_value, per_cent, points, table
from distributed_autolora.reporting.statistics import standard_deviation, wilson_interval
from distributed_autolora.reporting.study import APGD, AUTOATTACK, NATURAL, ROBUST, Arm, Study
from distributed_autolora.reporting.study_ratios import branch_ratios
from distributed_autolora.reporting.study_schedules import gap_column
from distributed_autolora.reporting.study_statistics import Comparison, McNemar

NOT_RUN = "not run"


def metric_label(metric: str) -> str:
    """Returns an accuracy's name for people: "natural", "PGD-10", "AutoAttack"."""
    names = {NATURAL: "natural", AUTOATTACK: "AutoAttack", APGD: "APGD-CE + APGD-T"}
    return names.get(metric) or attack_label(metric.removeprefix(ROBUST))


def mean_and_spread(values: Sequence[float]) -> str:
    """Returns "83.2 ± 0.4", without a spread for a single value."""
    deviation = standard_deviation(values)
    return per_cent(statistics.fmean(values)) + ("" if deviation is None else f" ± {per_cent(deviation)}")


def results_table(study: Study, comparisons: Sequence[Comparison]) -> str:
    """Returns the paper's table turned on its side: a row a method, and the reference's lead over each baseline."""
    ratios, gaps = branch_ratios(study), gap_column(study)
    rows = []
    for arm in study.arms:
        ratio = [ratios.get(arm.name, NONE)] if ratios else []
        gap = [gaps.get(arm.name, NONE)] if gaps else []
        rows.append([f"**{arm.label}**", *ratio, *(_cell(study, arm.name, metric) for metric in study.metrics), *gap])
        paper = _paper_row(study, arm)
        if paper:
            printed = [paper_results.parameter_ratio(arm.name) or NONE] if ratios else []
            rows.append([paper[0], *printed, *paper[1:], *([NONE] if gaps else [])])
    for baseline in study.arms:
        cells = {cell.metric: points(cell.difference) for cell in comparisons if cell.baseline == baseline.name}
        if cells:
            label = f"{study.arm(baseline.reference or '').label} - {baseline.label}"
            pad = [NONE] if ratios else []
            row = [label, *pad, *(cells.get(metric, NONE) for metric in study.metrics)]
            rows.append([*row, *([NONE] if gaps else [])])
    header = ["%", *(["branch parameters"] if ratios else []), *(_column(study, metric) for metric in study.metrics)]
    return table([*header, *(["gap on validation"] if gaps else [])], rows)


def tests_table(study: Study, comparisons: Sequence[Comparison]) -> str:
    """Returns every cell's unpaired tests with Holm's correction, and the paper's p-value where it has one."""
    printed = [_paper_p(study, cell) for cell in comparisons]
    header = ["against", "accuracy", "difference", "needed", "Student p (Holm)", "Welch p (Holm)", "remark"]
    rows = []
    for cell, paper in zip(comparisons, printed, strict=True):
        tests = [_with_holm(cell.student, cell.student_holm), _with_holm(cell.welch, cell.welch_holm)]
        needed = NONE if cell.needed is None else per_cent(cell.needed)
        row = [_pair(study, cell), metric_label(cell.metric), points(cell.difference), needed, *tests, cell.remark]
        rows.append([*row, *([paper or NONE] if any(printed) else [])])
    return table([*header, *(["paper's p"] if any(printed) else [])], rows)


def intervals_table(study: Study) -> str:
    """Returns every final run's accuracies with 95 % Wilson intervals."""
    rows = []
    for arm in study.arms:
        for run in study.judged(arm.name):
            cells = []
            for metric in study.metrics:
                counts = run.counts.get(metric)
                cells.append(NOT_RUN if counts is None else _interval(counts.correct, counts.total))
            rows.append([arm.label, str(run.seed), *cells])
    return table(["method", "seed", *map(metric_label, study.metrics)], rows)


def mcnemar_table(study: Study, tests: Sequence[McNemar]) -> str:
    """Returns, for each baseline and seed, the images that only one of the two models judged rightly."""
    metrics = [metric for metric in study.metrics if any(test.metric == metric for test in tests)]
    found = {(test.baseline, test.seed, test.metric): test for test in tests}
    rows = []
    for baseline, seed in dict.fromkeys((test.baseline, test.seed) for test in tests):
        cells = []
        for metric in metrics:
            test = found.get((baseline, seed, metric))
            text = NONE if test is None else f"{test.only_reference} : {test.only_baseline}, p = {p_value(test.p)}"
            cells.append(text)
        rows.append([_pair_of(study, baseline), str(seed), *cells])
    return table(["against", "seed", *map(metric_label, metrics)], rows)


def autoattack_note(study: Study) -> str:
    """Returns what "AutoAttack" stands for in this study, as its evaluations label it."""
    labels: dict[str, None] = {}
    images: set[int] = set()
    for run in study.runs:
        counts = run.counts.get(AUTOATTACK)
        if counts is not None and run.evaluation is not None:
            labels[(run.evaluation.get("labels") or {}).get(AUTOATTACK, "AutoAttack, kind not recorded")] = None
            images.add(counts.total)
    if not labels:
        weaker = {run.evaluation["labels"][APGD] for run in study.runs if APGD in run.counts and run.evaluation}
        instead = f" {'; '.join(sorted(weaker))}: the first two of its four attacks." if weaker else ""
        return f"AutoAttack was not run on any of these models; `jobs/evaluate.py` runs it.{instead}"
    on = " or ".join(f"{count:,}" for count in sorted(images))
    text = f"AutoAttack: {'; '.join(labels)}; on {on} test images."
    return text + (" **The runs were not all judged by the same kind.**" if len(labels) > 1 or len(images) > 1 else "")


def _column(study: Study, metric: str) -> str:
    """Returns the head of a column: "APGD-CE + APGD-T on 250 of 1,000 images" where not all test images were judged."""
    runs = [run.counts for arm in study.arms for run in study.judged(arm.name) if metric in run.counts]
    images = {(counts[metric].total, counts[NATURAL].total) for counts in runs if NATURAL in counts}
    some = [f"{judged:,} of {there:,}" for judged, there in sorted(images) if judged < there]
    text = " or ".join([*some, *(["all"] if len(some) < len(images) else [])])
    return metric_label(metric) + (f" on {text} images" if some else "")


def _cell(study: Study, arm: str, metric: str) -> str:
    counts = study.accuracies(arm, metric)
    if not counts:
        return NOT_RUN if study.judged(arm) else NONE
    values = [part.accuracy for part in counts.values()]
    each = f" ({', '.join(map(per_cent, values))})" if len(values) > 1 else ""
    planned = len(study["seeds"] or counts)
    short = f" [{len(values)} of {counted(planned, 'seed')}]" if len(values) < planned else ""
    return mean_and_spread(values) + each + short


def _paper_row(study: Study, arm: Arm) -> list[str] | None:
    tables, task, backbone = study["paper_tables"] or [], study["task"], study["backbone"]
    found = [paper_results.accuracy(tables, task, backbone, arm.name, metric) for metric in study.metrics]
    numbers = {number for number, _ in filter(None, found)}
    if not numbers:
        return None
    return [f"*paper, Table {', '.join(sorted(numbers))}*", *(value[1] if value else NONE for value in found)]


def _paper_p(study: Study, cell: Comparison) -> str | None:
    if cell.reference.lower() != paper_results.AUTOLORA:
        return None
    return paper_results.p_value(
        study["paper_tables"] or [], study["task"], study["backbone"], cell.baseline, cell.metric
    )


def _with_holm(p: float | None, adjusted: float | None) -> str:
    return p_value(p) if p is None else f"{p_value(p)} ({p_value(adjusted)})"


def _pair(study: Study, cell: Comparison) -> str:
    return _pair_of(study, cell.baseline)


def _pair_of(study: Study, baseline: str) -> str:
    """The baseline alone where the study has one reference, else both."""
    arm = study.arm(baseline)
    return arm.label if len(study.references) == 1 else f"{study.arm(arm.reference or '').label} - {arm.label}"


def _interval(correct: int, total: int) -> str:
    low, high = wilson_interval(correct, total)
    return f"{per_cent(correct / total)} [{per_cent(low)}, {per_cent(high)}]"
