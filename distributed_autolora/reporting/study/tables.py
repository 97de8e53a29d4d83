"""The tables of a study's report: accuracies beside the paper's, tests, paired counts."""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.core.lora import LowRankBranch, parameter_ratio, table3_ratio
from distributed_autolora.models import build
from distributed_autolora.records import ArmRecord
from distributed_autolora.reporting.format import NONE, counted, p_value, per_cent, points, table
from distributed_autolora.reporting.study.loading import (
    APGD,
    AUTOATTACK,
    NATURAL,
    ROBUST,
    StudyResults,
    StudyRun,
    metric_label,
)
from distributed_autolora.reporting.study.outcomes import right
from distributed_autolora.reporting.study.statistics import Comparison, McNemar, Paired
from distributed_autolora.studies.paper_results import printed
from distributed_autolora.studies.tables import AUTOLORA

NOT_RUN = "not run"


def results_table(study: StudyResults, comparisons: Sequence[Comparison]) -> str:
    """Returns the paper's table turned on its side: a row a method, and the reference's lead over each baseline."""
    ratios, gaps = branch_ratios(study), gap_column(study)
    rows = [["%", "branch parameters", *(_column(study, metric) for metric in study.metrics), "gap on validation"]]
    for arm in study.arms:
        cells = [_cell(study, arm.id, metric) for metric in study.metrics]
        rows.append([f"**{arm.label}**", ratios.get(arm.id, NONE), *cells, gaps.get(arm.id, NONE)])
        if paper := _paper_row(study, arm):
            size = printed(["3"], "", "resnet18", arm.id, "branch_parameters")
            rows.append([paper[0], size[1] if size else NONE, *paper[1:], NONE])
    for baseline in study.arms:
        leads = {cell.metric: points(cell.difference) for cell in comparisons if cell.baseline == baseline.id}
        if leads:
            label = f"{study.arm(baseline.reference or '').label} - {baseline.label}"
            rows.append([label, NONE, *(leads.get(metric, NONE) for metric in study.metrics), NONE])
    empty = {place for place, known in ((1, ratios), (len(rows[0]) - 1, gaps)) if not known}
    rows = [[cell for place, cell in enumerate(row) if place not in empty] for row in rows]
    return table(rows[0], rows[1:])


def accuracies_text(study: StudyResults, arm: str) -> str:
    """Returns "natural 88.3 ± 0.4 (...), PGD-10 ..." of an arm; "" before it has a result."""
    known = [metric for metric in study.metrics if study.accuracies(arm, metric)]
    return ", ".join(f"{metric_label(metric)} {_cell(study, arm, metric)}" for metric in known)


def tests_table(study: StudyResults, comparisons: Sequence[Comparison]) -> str:
    """Returns every cell's unpaired tests with Holm's correction, and the paper's p-value where it has one."""
    known = [
        _printed(study, cell.baseline, f"p_value/{cell.metric}") if cell.reference == AUTOLORA else None
        for cell in comparisons
    ]
    from_paper = [found[1] if found else NONE for found in known]
    has_paper = any(known)
    header = ["against", "accuracy", "difference", "needed", "Student p (Holm)", "Welch p (Holm)", "remark"]
    rows = []
    for cell, paper in zip(comparisons, from_paper, strict=True):
        tests = [_with_holm(cell.student, cell.student_holm), _with_holm(cell.welch, cell.welch_holm)]
        needed = NONE if cell.needed is None else per_cent(cell.needed)
        what = _pair(study, cell.baseline), metric_label(cell.metric), points(cell.difference)
        rows.append([*what, needed, *tests, cell.remark, *([paper] if has_paper else [])])
    return table([*header, *(["paper's p"] if has_paper else [])], rows)


def paired_table(study: StudyResults, cells: Sequence[Paired]) -> str:
    """Returns, for each cell with outcomes by image, the difference with its interval, paired by seed and image."""
    header = ["against", "accuracy", "difference [95 % interval]", "p (Holm)", "seeds x images"]
    rows = [
        [
            _pair(study, cell.baseline),
            metric_label(cell.metric),
            f"{points(cell.found.difference)} [{points(cell.found.low)}, {points(cell.found.high)}]",
            _with_holm(cell.found.p, cell.holm),
            f"{cell.seeds} x {cell.images:,}",
        ]
        for cell in cells
    ]
    return table(header, rows)


def mcnemar_table(study: StudyResults, tests: Sequence[McNemar]) -> str:
    """Returns, for each baseline and seed, the images that only one of the two models classifies correctly."""
    metrics = [metric for metric in study.metrics if any(test.metric == metric for test in tests)]
    found = {
        (test.baseline, test.seed, test.metric): f"{test.only_reference} : {test.only_baseline}, p = {p_value(test.p)}"
        for test in tests
    }
    rows = [
        [_pair(study, baseline), str(seed), *(found.get((baseline, seed, metric), NONE) for metric in metrics)]
        for baseline, seed in dict.fromkeys((test.baseline, test.seed) for test in tests)
    ]
    return table(["against", "seed", *map(metric_label, metrics)], rows)


def autoattack_note(study: StudyResults) -> str:
    """Returns what "AutoAttack" means in this study, as its evaluations label it."""
    labels: dict[str, None] = {}
    images: set[int] = set()
    for run in study.runs:
        counts = run.counts.get(AUTOATTACK)
        if counts is not None and (found := run.evaluation_by(AUTOATTACK)):
            labels[found[1].label] = None
            images.add(counts.total)
    if not labels:
        weaker = {found[1].label for run in study.runs if APGD in run.counts and (found := run.evaluation_by(APGD))}
        instead = f" {'; '.join(sorted(weaker))}: the first two of its four attacks." if weaker else ""
        return f"AutoAttack was not run on any of these models; `autolora evaluate` runs it.{instead}"
    on = " or ".join(f"{count:,}" for count in sorted(images))
    text = f"AutoAttack: {'; '.join(labels)}; on {on} test images."
    return text + (" **The runs were not all evaluated alike.**" if len(labels) > 1 or len(images) > 1 else "")


def _column(study: StudyResults, metric: str) -> str:
    """Returns the head of a column: "APGD-CE + APGD-T on 250 of 1,000 images" where not all test images count."""
    runs = [run.counts for run in study.evaluated() if metric in run.counts]
    images = {(counts[metric].total, counts[NATURAL].total) for counts in runs if NATURAL in counts}
    some = [f"{count:,} of {there:,}" for count, there in sorted(images) if count < there]
    text = " or ".join([*some, *(["all"] if len(some) < len(images) else [])])
    return metric_label(metric) + (f" on {text} images" if some else "")


def _cell(study: StudyResults, arm: str, metric: str) -> str:
    counts = study.accuracies(arm, metric)
    if not counts:
        return NOT_RUN if study.evaluated(arm) else NONE
    planned = len(study.record.seeds)
    short = f" [{len(counts)} of {counted(planned, 'seed')}]" if len(counts) < planned else ""
    return _mean_and_spread([part.accuracy for part in counts.values()]) + short


def _paper_row(study: StudyResults, arm: ArmRecord) -> list[str] | None:
    found = [_printed(study, arm.id, metric) for metric in study.metrics]
    numbers = {number for number, _ in filter(None, found)}
    if not numbers:
        return None
    return [f"*paper, Table {', '.join(sorted(numbers))}*", *(value[1] if value else NONE for value in found)]


def _printed(study: StudyResults, arm: str, metric: str) -> tuple[str, str] | None:
    return printed(study.record.paper_tables, study.record.task, study.record.backbone, arm, metric)


def _with_holm(p: float | None, adjusted: float | None) -> str:
    return p_value(p) if p is None else f"{p_value(p)} ({p_value(adjusted)})"


def _pair(study: StudyResults, baseline: str) -> str:
    """The baseline alone where the study has one reference, else both."""
    arm = study.arm(baseline)
    return arm.label if len(study.references) == 1 else f"{study.arm(arm.reference or '').label} - {arm.label}"


def gap_column(study: StudyResults) -> dict[str, str]:
    """Returns {arm: "3.2 (2.8, 3.6)"}, the points that a stronger attack took on validation images.

    In the check nearest to the chosen epoch of each final run; empty where none was checked.
    """
    gaps = {arm.id: [run.masking.gap for run in study.of(arm.id, "final") if run.masking] for arm in study.arms}
    return {name: _mean_and_each(each) for name, each in gaps.items() if each}


def branch_ratios(study: StudyResults) -> dict[str, str]:
    """Returns {arm: "4.66% (4.87%)"} for a study of Table 3, empty for any other.

    First the branch over the feature extractor; in brackets as Table 3 counts it (branch, batch norms called "bn" and
    head over the whole classifier).
    """
    if "3" not in study.record.paper_tables:
        return {}
    ratios = {}
    for arm in study.arms:
        runs = [run for run in study.of(arm.id, "final") if run.config()]
        if runs:
            ratio, table3 = _of_run(runs[0])
            ratios[arm.id] = f"{ratio:.2%} ({table3:.2%})"
    return ratios


def _of_run(run: StudyRun) -> tuple[float, float]:
    config = ExperimentConfig.from_dict(run.config())
    model, method = config.model, config.method
    classifier = build(
        model.backbone, 10 if run.result is None else run.result.num_classes, mean=model.mean, std=model.std
    )
    backbone, head = classifier.backbone, classifier.head_name
    branch = LowRankBranch(backbone, method.lora_rank, method.lora_scope, head)
    return parameter_ratio(backbone, branch, head), table3_ratio(backbone, branch, head)


def same_images_table(study: StudyResults, pooled: Any) -> str | None:
    """Returns both accuracies of each arm on the images of the stronger attack, and the points between them.

    None where no run has the outcomes of both attacks.
    """
    weak = next((ROBUST + run.attack for run in study.runs if run.attack), None)
    strong = next((m for m in (AUTOATTACK, APGD) if any(study.accuracies(arm.id, m) for arm in study.arms)), None)
    if weak is None or strong is None:
        return None
    rows = []
    for arm in study.arms:
        found = (_on_same_images(pooled, arm.id, run.seed, weak, strong) for run in study.evaluated(arm.id))
        if pairs := list(filter(None, found)):
            lost = [one - other for one, other in pairs]
            rows.append([arm.label, *map(_mean_and_each, (*zip(*pairs, strict=True), lost))])
    header = ["%", metric_label(weak), metric_label(strong), "points lost"]
    return table(header, rows) if rows else None


def _on_same_images(pooled: Any, arm: str, seed: int, weak: str, strong: str) -> tuple[float, float] | None:
    """Returns a run's accuracies under both attacks on the images that have both outcomes; None without any."""
    one, other = right(pooled, arm, seed, weak), right(pooled, arm, seed, strong)
    if one is None or other is None:
        return None
    _, mine, theirs = np.intersect1d(one[0], other[0], return_indices=True)
    return (float(one[1][mine].mean()), float(other[1][theirs].mean())) if len(mine) else None


def _mean_and_each(fractions: Sequence[float]) -> str:
    """Returns "3.2 (2.8, 3.6)" in hundredths, a single one alone."""
    each = f" ({', '.join(map(per_cent, fractions))})" if len(fractions) > 1 else ""
    return per_cent(statistics.fmean(fractions)) + each


def _mean_and_spread(values: Sequence[float]) -> str:
    """Returns "83.2 ± 0.4 (83.6, 82.8)", a single one alone."""
    if len(values) == 1:
        return per_cent(values[0])
    each = ", ".join(map(per_cent, values))
    return f"{per_cent(statistics.fmean(values))} ± {per_cent(statistics.stdev(values))} ({each})"
