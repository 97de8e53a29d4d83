"""The words of a study's report, section by section."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

from distributed_autolora.reporting import study_schedules as records
from distributed_autolora.reporting import study_tables as tables
from distributed_autolora.reporting.history import attack_label, duration, pixel_fraction
from distributed_autolora.reporting.markdown import counted, listed
from distributed_autolora.reporting.paper_results import TASKS
from distributed_autolora.reporting.study import Study
from distributed_autolora.reporting.study_costs import total
from distributed_autolora.reporting.study_outcomes import disagreements
from distributed_autolora.reporting.study_statistics import Comparison, McNemar, compare, mcnemar_tests
from distributed_autolora.reporting.study_verdict import better_trials, reasons, verdict

_PACKAGES = ("distributed-autolora", "torch", "torchvision", "ray", "mlflow", "scipy", "pyautoattack")


def report_text(study: Study, pooled: Any, figures: Sequence[str]) -> str:
    """Returns report.md.

    Args:
        study: the study so far.
        pooled: its outcomes, from `pooled_outcomes`.
        figures: names of the figures that were drawn.
    """
    comparisons, warnings = compare(study), _warnings(study, pooled)
    paired = mcnemar_tests(study, pooled)
    sections = [
        f"# {study['title'] or study['study']}",
        verdict(study, comparisons),
        f"**{counted(len(warnings), 'warning').capitalize()}: read [Warnings](#warnings) before quoting a number.**"
        if warnings
        else "",
        _reasons(study, comparisons),
        _missing(study),
        _setting(study),
        _results(study, comparisons, figures),
        _tests(study, comparisons, paired),
        _cost(study, figures),
        _similarity(study, figures),
        _schedules(study),
        _search(study, figures),
        "## Warnings\n\n" + "\n".join(f"- {line}" for line in warnings) if warnings else "",
        _reproduction(study, pooled),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


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
    judged = [run.result or {} for run in study.runs if run.phase == "final" and run.counts]
    images = ""
    if judged:
        first = judged[0]
        images = (
            f" {first['num_classes']} classes; {first['train_images']:,} training, {first['val_images']:,} validation "
            f"and {first['test_images']:,} test images."
        )
    epsilon = study["epsilon"]
    budget = "" if epsilon is None else f" Perturbations of at most {pixel_fraction(epsilon)} a pixel (L-infinity)."
    return (
        "## What was compared\n\n"
        f"Task {study['task']}; backbone {study['backbone']}, pre-trained: {study['pretraining']}.{budget}{images} "
        f"Methods: {'; '.join(arm.label for arm in study.arms)}. "
        f"Seeds: {', '.join(map(str, study['seeds'] or []))}; each seed has the same split, order and noise in every "
        "method. Every model is the best epoch on the validation images, and was judged on the test images once."
    )


def _results(study: Study, comparisons: Sequence[Comparison], figures: Sequence[str]) -> str:
    text = (
        "## Test accuracy\n\n"
        f"{tables.results_table(study, comparisons)}\n\n"
        "Per cent: mean ± standard deviation (n - 1) over seeds, in brackets every seed's own value; the last lines "
        f"are differences of means in percentage points, before rounding. {tables.autoattack_note(study)}"
    )
    if study["task"] in TASKS:
        text += (
            " The paper prints one number a cell and does not say whether it is a mean; it picks every checkpoint by "
            "test accuracy, here validation picks it."
        )
    text += _picture("accuracies.png", "Test accuracy of every seed", figures)
    if any(study.judged(arm.name) for arm in study.arms):
        text += "\n\n95 % Wilson intervals of every model (the test images' share of the uncertainty):\n\n"
        text += tables.intervals_table(study)
    return text


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
        f"p < 0.05 / {max(1, tested)} under Student's test at the spread seen here."
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
        "the network, forward and backward, and do not. Training and validation count, the judgement on test images "
        "does not. Failed and stopped trials count as far as they came, by finished epochs. The whole study so far: "
        f"{duration(whole.worker_seconds)} of worker time." + _picture("cost.png", "Accuracy against cost", figures)
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
    return (
        f"## What the schedules did\n\n{records.schedule_table(study)}\n\n"
        "*after epoch*: when the learning rate was halved, in brackets the epoch whose state was restored; or by what "
        "it was multiplied. lambda1 weighs the natural loss, lambda2 the KL loss; a dash: the method has fixed weights."
    )


def _search(study: Study, figures: Sequence[str]) -> str:
    searched = [arm for arm in study.arms if arm.grid]
    if not searched:
        return ""
    parts = [
        "## How much the baselines depend on their settings\n\n"
        f"Search on seed {study['search_seed']} ({study['scheduler']}), selected by robust validation accuracy; no "
        "trial opened the test images. The grid holds the values of the paper's appendix and of the released scripts; "
        "the grid that its authors searched is not published."
        + _picture("search.png", "Validation accuracy of every trial", figures),
    ]
    for arm in searched:
        better = better_trials(study, arm.reference or "").get(arm.name)
        parts.append(" ".join([records.search_summary(study, arm), *(better[:1] if better else ())]))
        if study.of(arm.name, "search"):
            parts.append(records.search_table(study, arm))
    return "\n\n".join(parts)


def _warnings(study: Study, pooled: Any) -> list[str]:
    checks: dict[str, list[str]] = {}
    for run in study.runs:
        for check in (run.evaluation or {}).get("sanity") or []:
            if check["status"] != "PASS":
                detail = f"{study.arm(run.arm).label}, seed {run.seed} ({check['detail']})"
                checks.setdefault(f"{check['status']}: {check['name']}", []).append(detail)
    lines = [f"{check}: {'; '.join(details)}" for check, details in checks.items()]
    lines += disagreements(study, pooled)
    digests = _split_digests(study)
    if len(digests) > 1:
        lines.append("The runs do not share one data split: their accuracies are not comparable.")
    attacks = {run.attack for run in study.runs if run.attack}
    if len(attacks) > 1:
        lines.append(
            f"The runs were validated by different attacks: {listed([attack_label(a) for a in sorted(attacks)])}."
        )
    return lines


def _reproduction(study: Study, pooled: Any) -> str:
    digests = _split_digests(study)
    chosen = records.chosen_settings(study)
    kept = "not kept by any run" if pooled is None else "one line an image, seed and method"
    return "\n\n".join(
        filter(
            None,
            [
                "## How every number can be computed again",
                f"```\n{study['command']}\n```",
                "- accuracies, differences, intervals and McNemar's tests: `outcomes.parquet` beside this file "
                f"({kept}; right where a prediction equals `label`, `robust/...` is true or false)\n"
                "- every run's counts, settings, status and cost: `results.csv`\n"
                "- validation accuracies, schedules, seconds and passes by epoch: `../runs/RUN/history.json`\n"
                "- the config of a run, to train it again: `../runs/RUN/config.yaml`\n"
                "- AutoAttack: `../runs/RUN/evaluation/evaluation.json` and `outcomes.parquet`",
                f"Settings that the search chose:\n\n{chosen}" if chosen else "",
                f"Data split (SHA-256): {', '.join(f'`{digest}`' for digest in digests) or 'no run has one yet'}. "
                f"Written with {_versions()}.{_evaluated_with(study)}",
            ],
        )
    )


def _split_digests(study: Study) -> list[str]:
    return sorted({str(digest) for run in study.runs if (digest := (run.result or {}).get("split_digest"))})


def _versions() -> str:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def _evaluated_with(study: Study) -> str:
    versions = {
        ", ".join(f"{name} {version}" for name, version in sorted(run.evaluation["package_versions"].items()))
        for run in study.runs
        if run.evaluation and run.evaluation.get("package_versions")
    }
    return f" AutoAttack ran with {'; '.join(sorted(versions))}." if versions else ""


def _picture(name: str, text: str, figures: Sequence[str]) -> str:
    return f"\n\n![{text}]({name})" if name in figures else ""
