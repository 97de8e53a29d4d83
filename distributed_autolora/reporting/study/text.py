"""report.md of a study, section by section, and the text of its MLflow page."""

from collections.abc import Iterable, Sequence
from typing import Any

from distributed_autolora.reporting.format import counted, duration, p_value, per_cent, points, threat_text
from distributed_autolora.reporting.study import run_tables, tables
from distributed_autolora.reporting.study.loading import StudyResults, metric_label
from distributed_autolora.reporting.study.provenance import reproduction, split_digests, warnings
from distributed_autolora.reporting.study.run_tables import total
from distributed_autolora.reporting.study.statistics import (
    Comparison,
    compare,
    decisive,
    mcnemar_tests,
    paired_comparisons,
)
from distributed_autolora.studies.hyperparameters import PAPER_TASK_NAMES

_NOTE_END = "The whole report, with its figures and `results.csv`, is in the folder `report` under Artifacts."


def report_text(study: StudyResults, pooled: Any, figures: Sequence[str]) -> str:
    """Returns report.md; `pooled` is from `pooled_outcomes`, `figures` are the names of those that were drawn."""
    comparisons, doubts = compare(study), warnings(study, pooled)
    sections = [
        f"# {study.record.title}",
        status(study),
        _bullets([_result(study, cell) for cell in decisive(study, comparisons)]),
        f"{counted(len(doubts), 'warning').capitalize()}: see [Warnings](#warnings)." if doubts else "",
        _section("Missing or failed", _bullets(run_tables.missing(study))),
        _section("What was compared", _setting(study)),
        _section("Test accuracy", *_accuracies(study, pooled, comparisons, figures)),
        _section("Statistical tests", *_tests(study, pooled, comparisons)),
        _section("Cost", *_cost(study, figures)),
        _section("Gradient similarity", *_similarity(figures)),
        _section("Learning rate and loss weights", *_schedules(study)),
        _section("Hyperparameter search", *_search(study, figures)),
        _section("Warnings", _bullets(doubts)),
        reproduction(study, pooled),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def mlflow_note(study: StudyResults, length: int = 8000) -> str:
    """Returns the text of the study's MLflow page, at most `length` characters: status, results, accuracies."""
    lines = [f"# {study.record.title}", status(study)]
    lines += [f"- {_result(study, cell)}" for cell in decisive(study, compare(study))]
    arms = [f"- {arm.label}: {cells}" for arm in study.arms if (cells := tables.accuracies_text(study, arm.id))]
    lines += ["Test accuracy in per cent, mean ± standard deviation over seeds (each seed):", *arms] if arms else []
    lines = list(filter(None, lines))
    while len("\n\n".join([*lines, _NOTE_END])) >= length:
        lines.pop()
    return "\n\n".join([*lines, _NOTE_END]) + "\n"


def status(study: StudyResults) -> str:
    """Returns whether the study is finished: how many of its runs are done, of how many arms and seeds."""
    done = sum(run.status in ("finished", "stopped_early") for run in study.runs)
    complete = all({run.seed for run in study.evaluated(arm.id)} >= set(study.record.seeds) for arm in study.arms)
    if not complete or any(run.status in ("pending", "running") for run in study.runs):
        return f"Status: not finished, {done} of {len(study.runs)} runs done."
    arms, seeds = counted(len(study.arms), "arm"), counted(len(study.record.seeds), "seed")
    return f"Status: finished, {done} of {len(study.runs)} runs done, {arms}, {seeds}."


def _result(study: StudyResults, cell: Comparison) -> str:
    own, other = (per_cent(value) for value in (cell.reference_mean, cell.baseline_mean))
    adjusted = [p for p in (cell.student_holm, cell.welch_holm) if p is not None]
    test = f"{cell.remark}, p = {p_value(max(adjusted))}" if adjusted else cell.remark
    return (
        f"*{study.arm(cell.reference).label}* {own} % against *{study.arm(cell.baseline).label}* {other} % "
        f"{metric_label(cell.metric)} accuracy: {points(cell.difference)} points over {cell.seeds} ({test})."
    )


def _setting(study: StudyResults) -> str:
    record = study.record
    from_elsewhere = f" (images of {record.images})" if record.images else ""
    parts = [
        f"Task {record.task}{from_elsewhere}; backbone {record.backbone}, pre-trained: {record.pretraining}. "
        f"Perturbations of {threat_text(record.norm, record.epsilon)}."
    ]
    results = [run.result for run in study.runs if run.phase == "final" and run.counts and run.result]
    if results:
        sizes = dict.fromkeys((result.train_images, result.val_images) for result in results)
        trained = " or ".join(f"{train:,} training, {val:,} validation" for train, val in sizes)
        parts.append(f"{results[0].num_classes} classes; {trained} and {results[0].test_images:,} test images.")
    shared = "All runs share" if len(split_digests(study)) < 2 else "Arms that are compared share"
    parts.append(
        f"Arms: {'; '.join(arm.label for arm in study.arms)}. Seeds: {', '.join(map(str, study.record.seeds))}. "
        f"{shared} one split into training and validation images; runs of one seed also share the order of the images, "
        "their augmentation, the random starts of the attack and the initial head. Each model is the epoch selected on "
        "validation images; it was tested once."
    )
    return " ".join(parts)


def _accuracies(
    study: StudyResults, pooled: Any, comparisons: Sequence[Comparison], figures: Sequence[str]
) -> Iterable[str]:
    yield tables.results_table(study, comparisons)
    note = "Per cent: mean ± standard deviation (n - 1) over seeds (each seed). "
    if comparisons:
        note += "Differences are in percentage points, over the seeds that both arms have. "
    note += tables.autoattack_note(study)
    if study.record.task in PAPER_TASK_NAMES:
        note += " The paper selects checkpoints on test images, this study on validation images."
    if tables.gap_column(study):
        note += (
            " *Gap on validation*: share of validation images that are robust to the runs' own attack and not to a "
            "stronger search, in the check nearest to the selected epoch."
        )
    yield note
    yield _picture("accuracies.png", "Test accuracy of every seed with 95 % Wilson intervals", figures)
    same = tables.same_images_table(study, pooled)
    if same is not None:
        yield "Both attacks on the same test images; more than 3 to 6 points may indicate masked gradients:"
        yield same


def _tests(study: StudyResults, pooled: Any, comparisons: Sequence[Comparison]) -> Iterable[str]:
    if not comparisons:
        return
    tested = sum(cell.student is not None for cell in comparisons)
    yield tables.tests_table(study, comparisons)
    yield (
        f"Unpaired two-sided t-tests over seeds, in brackets after Holm's correction over {counted(tested, 'cell')}; "
        "significant: both below 0.05 after the correction. *Needed*: the difference in points that reaches "
        f"p < 0.05 / {max(1, tested)} in Student's test at this spread."
    )
    both = paired_comparisons(study, pooled)
    if both:
        yield (
            "Paired by seed and by test image: mean difference in points with its 95 % interval, by a hierarchical "
            f"bootstrap over seeds and images; in brackets p after Holm's correction over {counted(len(both), 'cell')}:"
        )
        yield tables.paired_table(study, both)
    paired = mcnemar_tests(study, pooled)
    if paired:
        yield (
            "Exact McNemar tests (two-sided, uncorrected) of the two models of a seed on the same test images; images "
            "that only the reference : only the other arm classifies correctly:"
        )
        yield tables.mcnemar_table(study, paired)


def _cost(study: StudyResults, figures: Sequence[str]) -> Iterable[str]:
    yield run_tables.cost_table(study)
    yield (
        "Training and validation, without the test; passes are images through the network. The whole study took "
        f"{duration(total(study.runs).worker_seconds)} of worker time."
    )
    yield _picture("cost.png", "Accuracy against cost", figures)


def _similarity(figures: Sequence[str]) -> Iterable[str]:
    if "gradient_similarity.png" in figures:
        yield (
            "Mean cosine per image between the gradients of the natural and the adversarial objective (Eq. 3 and 4) on "
            "a fixed subset of the training images; the paper's Figures 1 and 2 show *test* accuracy beside it, this "
            "figure *validation* accuracy. The numbers of every epoch are in `../runs/RUN/history.json`."
        )
        yield _picture("gradient_similarity.png", "Gradient similarity and robust validation accuracy", figures)


def _schedules(study: StudyResults) -> Iterable[str]:
    found = run_tables.schedule_table(study)
    if found is not None:
        yield found
        rules = run_tables.automatic_rules(study)
        named = f"Automatic schedules follow {rules}. " if rules else ""
        yield f"{named}*After epoch*: changes of the learning rate, in brackets the epoch whose weights were restored."


def _search(study: StudyResults, figures: Sequence[str]) -> Iterable[str]:
    searched = [arm for arm in study.arms if arm.grid]
    if searched:
        yield f"Seed {study.record.search_seed}, {study.record.scheduler}; selected by robust validation accuracy."
        yield _picture("search.png", "Validation accuracy of every trial", figures)
    for arm in searched:
        yield run_tables.search_sentence(study, arm)
        yield run_tables.search_table(study, arm)


def _section(title: str, *parts: str) -> str:
    text = "\n\n".join(filter(None, parts))
    return f"## {title}\n\n{text}" if text else ""


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _picture(name: str, text: str, figures: Sequence[str]) -> str:
    return f"![{text}]({name})" if name in figures else ""
