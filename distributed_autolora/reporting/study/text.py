"""The words of a study's report, section by section."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distributed_autolora.reporting.format import duration, pixel_fraction
from distributed_autolora.reporting.markdown import TABLE_NOTE, counted
from distributed_autolora.reporting.study import schedules as records
from distributed_autolora.reporting.study import search, tables
from distributed_autolora.reporting.study.costs import total
from distributed_autolora.reporting.study.hints import better_trials, reasons
from distributed_autolora.reporting.study.loading import Arm, Study
from distributed_autolora.reporting.study.provenance import reproduction, split_digests, warnings
from distributed_autolora.reporting.study.statistics import Comparison, McNemar, compare, mcnemar_tests
from distributed_autolora.reporting.study.tables import same_images_table
from distributed_autolora.reporting.study.verdict import verdict
from distributed_autolora.studies.paper_results import TASKS
from distributed_autolora.studies.tables import GRID

_ONE_MODEL = (
    "The final run of a winner on the search seed is its trial once more, same settings and same seed, because no "
    "trial may open the test images: who wants one model pays for the search alone. "
)


def report_text(study: Study, pooled: Any, figures: Sequence[str]) -> str:
    """Returns report.md.

    Args:
        study: the study so far.
        pooled: its outcomes, from `pooled_outcomes`.
        figures: names of the figures that were drawn.
    """
    comparisons, doubts = compare(study), warnings(study, pooled)
    paired = mcnemar_tests(study, pooled)
    sections = [
        f"# {study['title'] or study['study']}",
        _unfinished(study),
        verdict(study, comparisons),
        f"**{counted(len(doubts), 'warning').capitalize()}: read [Warnings](#warnings) before quoting a number.**"
        if doubts
        else "",
        _reasons(study, comparisons),
        _missing(study),
        _setting(study),
        _results(study, pooled, comparisons, figures),
        _tests(study, comparisons, paired),
        _cost(study, figures),
        _similarity(study, figures),
        _schedules(study),
        _search(study, figures),
        "## Warnings\n\n" + "\n".join(f"- {line}" for line in doubts) if doubts else "",
        reproduction(study, pooled),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _unfinished(study: Study) -> str:
    if not records.is_unfinished(study):
        return ""
    done = sum(run.status in ("finished", "stopped_early") for run in study.runs)
    runs = f"{done} {'run is' if done == 1 else 'runs are'} done"
    return (
        f"**This study is not finished: {runs}, and what follows can still change. "
        "[What is missing](#what-is-missing-or-failed).**"
    )


def _reasons(study: Study, comparisons: Sequence[Comparison]) -> str:
    found = reasons(study, comparisons)
    if not found:
        return ""
    return "What the records say about why (hints, not proof):\n\n" + "\n".join(f"- {line}" for line in found)


def _missing(study: Study) -> str:
    lines = records.missing(study)
    if not lines:
        return ""
    return "## What is missing or failed\n\n" + "\n".join(f"- {line}" for line in lines)


def _setting(study: Study) -> str:
    judged = [run.result for run in study.runs if run.phase == "final" and run.counts and run.result is not None]
    images = ""
    if judged:
        sizes = dict.fromkeys((result.train_images, result.val_images) for result in judged)
        trained = [f"{train:,} training and {val:,} validation" for train, val in sizes]
        images = (
            f" {judged[0].num_classes} classes; {' or '.join(trained)} images, as the arm says, "
            f"and {judged[0].test_images:,} test images."
            if len(sizes) > 1
            else f" {judged[0].num_classes} classes; {judged[0].train_images:,} training, "
            f"{judged[0].val_images:,} validation and {judged[0].test_images:,} test images."
        )
    epsilon = study["epsilon"]
    budget = "" if epsilon is None else f" Perturbations of at most {pixel_fraction(epsilon)} a pixel (L-infinity)."
    from_elsewhere = f" (images of {study['images']})" if study["images"] else ""
    shared = "All runs share" if len(split_digests(study)) < 2 else "Arms that are compared share"
    return (
        "## What was compared\n\n"
        f"Task {study['task']}{from_elsewhere}; backbone {study['backbone']}, pre-trained: {study['pretraining']}."
        f"{budget}{images} "
        f"Methods: {'; '.join(arm.label for arm in study.arms)}. "
        f"Seeds: {', '.join(map(str, study['seeds'] or []))}. {shared} one split into training and validation "
        "images; runs of one seed also share the order of the images, their augmentation, the random starts of the "
        "attack and the first weights of the head. Every model is of the epoch chosen on validation images; the test "
        "images were opened when its training was over."
    )


def _results(study: Study, pooled: Any, comparisons: Sequence[Comparison], figures: Sequence[str]) -> str:
    text = (
        "## Test accuracy\n\n"
        f"{tables.results_table(study, comparisons)}\n\n"
        f"{TABLE_NOTE}mean ± standard deviation (n - 1) over seeds, in brackets every seed's own value. "
    )
    if comparisons:
        text += (
            "The last lines are differences of means over the seeds that both have, in percentage points, taken before "
            "rounding. "
        )
    text += tables.autoattack_note(study)
    if study["task"] in TASKS:
        text += (
            " The paper prints one number a cell and does not say whether it is a mean; it picks every checkpoint by "
            "test accuracy, here validation picks it."
        )
    text += _stronger(study, pooled) + _picture("accuracies.png", "Test accuracy of every seed", figures)
    if any(study.judged(arm.name) for arm in study.arms):
        text += "\n\n95 % Wilson intervals of every model (the test images' share of the uncertainty):\n\n"
        text += tables.intervals_table(study)
    return text


def _stronger(study: Study, pooled: Any) -> str:
    """What is said of masking, by attacks on test images and during training."""
    text = (
        " *Gap on validation*: the share of validation images that the runs' own attack leaves right and a stronger "
        "one does not, in the check nearest to the chosen epoch."
        if tables.gap_column(study)
        else ""
    )
    found = same_images_table(study, pooled)
    if found is None:
        return text
    return (
        f"{text}\n\nBoth attacks on the same test images, those that the stronger one judged; mean over seeds, in "
        "brackets every seed's own. An arm that loses much more than the others hides its gradients from the runs' own "
        f"attack, and whatever steered by that attack was misled:\n\n{found}"
    )


def _tests(study: Study, comparisons: Sequence[Comparison], paired: Sequence[McNemar]) -> str:
    if not comparisons:
        return ""
    tested = sum(cell.student is not None for cell in comparisons)
    text = (
        "## Can it be claimed?\n\n"
        f"{tables.tests_table(study, comparisons)}\n\n"
        "Unpaired two-sided t-tests over seeds, Student's (as the paper seems to use) and Welch's, in brackets after "
        f"Holm's correction over the {counted(tested, 'cell')} with a defined test. A difference is claimed only if "
        "both are below 0.05 after the correction. *Needed*: the difference in points that would have given "
        f"p < 0.05 / {max(1, tested)} under Student's test at the spread seen here. All seeds share the split and the "
        "test images, so these tests speak of other seeds, not of other images."
    )
    if paired:
        text += (
            "\n\nThe two models of one seed on the same test images: images that only the reference judges rightly : "
            "images that only the other does, and the exact McNemar test (two-sided, uncorrected). It speaks of "
            "these two models, not of the methods.\n\n"
            f"{tables.mcnemar_table(study, paired)}"
        )
    return text


def _cost(study: Study, figures: Sequence[str]) -> str:
    whole = total(study.runs)
    return (
        "## What it cost\n\n"
        f"{records.cost_table(study)}\n\n"
        "Worker time is summed over workers (h:mm:ss or m:ss) and moves with the machine; passes are images through "
        "the network, forward and backward, and do not. Training and validation count, the natural-branch accuracy "
        "that sets AutoLoRa's loss weights included; the judgement on test images does not. Failed and stopped trials "
        "count as far as they came, by finished epochs; an epoch that was cut off and repeated counts once. "
        + (_ONE_MODEL if any(study.of(arm.name, "search") for arm in study.arms) else "")
        + f"The whole study so far: {duration(whole.worker_seconds)} of worker time."
        + _picture("cost.png", "Accuracy against cost", figures)
    )


def _similarity(study: Study, figures: Sequence[str]) -> str:
    found = records.similarity_table(study)
    if found is None:
        return ""
    return (
        f"## Gradient similarity\n\n{found}\n\n"
        "Cosine between the gradients of the natural and the adversarial objective with respect to the feature "
        "extractor (Eq. 3 and 4), one image at a time, mean over a fixed subset of the training images."
        + _picture("gradient_similarity.png", "Gradient similarity and robust validation accuracy by epoch", figures)
        + "\n\nThe accuracy is on *validation* images; the paper's Figures 1a, 1b and 2 show *test* accuracy."
    )


def _schedules(study: Study) -> str:
    found = records.schedule_table(study)
    if found is None:
        return ""
    rules = records.automatic_rules(study)
    named = f"Automatic schedules follow {rules}. " if rules else ""
    return (
        f"## What the schedules did\n\n{found}\n\n{named}"
        "*after epoch*: when the learning rate was halved, in brackets the epoch whose state was restored; or by what "
        "it was multiplied. lambda1 weighs the natural loss, lambda2 the KL loss; a dash: the method has neither."
    )


def _origin_of_grid(searched: Sequence[Arm]) -> str:
    published = {(key, value) for key, values in GRID.items() for value in values}
    if all((key, value) in published for arm in searched for key, values in arm.grid.items() for value in values):
        return "The grid holds values of the paper's appendix and of the released scripts"
    return "The grid is this study's own: it goes beyond the values of the paper's appendix and of the released scripts"


def _search(study: Study, figures: Sequence[str]) -> str:
    searched = [arm for arm in study.arms if arm.grid]
    if not searched:
        return ""
    parts = [
        "## How much the baselines depend on their settings\n\n"
        f"Search on seed {study['search_seed']} ({study['scheduler']}), selected by robust validation accuracy; no "
        f"trial opened the test images. {_origin_of_grid(searched)}; the grid that its authors searched is not "
        "published." + search.chance(study) + _picture("search.png", "Validation accuracy of every trial", figures),
    ]
    for arm in searched:
        better = better_trials(study, arm.reference or "").get(arm.name)
        parts.append(" ".join([search.search_summary(study, arm), *(better[:1] if better else ())]))
        if study.of(arm.name, "search"):
            parts.append(search.search_table(study, arm))
    return "\n\n".join(parts)


def _picture(name: str, text: str, figures: Sequence[str]) -> str:
    return f"\n\n![{text}]({name})" if name in figures else ""
