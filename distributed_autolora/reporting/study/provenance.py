"""Warnings about a study's numbers, and how to reproduce them."""

import importlib.metadata
from collections.abc import Collection
from typing import Any

from distributed_autolora.reporting.format import attack_label, counted, listed, per_cent
from distributed_autolora.reporting.study.loading import APGD, AUTOATTACK, StudyResults, StudyRun, metric_label
from distributed_autolora.reporting.study.outcomes import disagreements, right

_PACKAGES = ("distributed-autolora", "torch", "torchvision", "ray", "mlflow", "scipy", "pyautoattack")


def warnings(study: StudyResults, pooled: Any) -> list[str]:
    """Returns one line for every warning about a number of the report."""
    lines = [*_sanity(study), *disagreements(study, pooled)]
    lines += [text for run in study.final() for text in _masked(run, study.arm(run.arm).label)]
    for arm in study.arms:
        failed = sum(run.status == "failed" for run in study.of(arm.id, "search"))
        if failed and study.evaluated(arm.id):
            trials = f"{counted(failed, 'trial')} of the search for {arm.label} failed"
            lines.append(f"{trials[0].upper()}{trials[1:]}: its settings were chosen among the others.")
    lines += _splits_apart(study) + _images_apart(study, pooled)
    attacks = {run.attack for run in study.runs if run.attack}
    if len(attacks) > 1:
        lines.append(
            f"The runs were validated by different attacks: {listed([attack_label(a) for a in sorted(attacks)])}."
        )
    return lines


def reproduction(study: StudyResults, pooled: Any) -> str:
    """Returns the section that says how every number can be reproduced."""
    digests = split_digests(study)
    kept = "not kept by any run" if pooled is None else "one line an image, seed and method"
    commands = "\n".join(["```", *study.record.commands, "```"])
    found = {package: next(iter(importlib.metadata.distributions(name=package)), None) for package in _PACKAGES}
    versions = ", ".join(f"{package} {known.version}" for package, known in found.items() if known)
    return (
        f"## How to reproduce\n\n{commands}\n\n"
        "- accuracies, differences, intervals and McNemar's tests: `outcomes.parquet` beside this file "
        f"({kept}; right where a prediction equals `label`, `robust/...` is true or false)\n"
        "- every run's counts, settings, status and cost: `results.csv`\n"
        "- validation accuracies, schedules, seconds and passes by epoch: `../runs/RUN/history.json`\n"
        "- the config of a run, to train it again: `../runs/RUN/config.yaml`\n"
        f"- {_attacks(study)}: {_evaluation_files(study)}\n\n"
        f"Data split (SHA-256): {', '.join(f'`{digest}`' for digest in digests) or 'no run has one yet'}. "
        f"Written with {versions}.{_evaluated_with(study)}"
    )


def split_digests(study: StudyResults, arms: Collection[str] | None = None) -> list[str]:
    """Returns the digests of the splits into training and validation images of some arms' runs; None: of all."""
    runs = [run for run in study.runs if arms is None or run.arm in arms]
    return sorted({run.result.split_digest for run in runs if run.result is not None})


def _sanity(study: StudyResults) -> list[str]:
    checks: dict[str, list[str]] = {}
    for run in study.runs:
        for check in (check for evaluation in run.evaluations.values() for check in evaluation.sanity):
            if check.status != "PASS":
                detail = f"{study.arm(run.arm).label}, seed {run.seed} ({check.detail})"
                checks.setdefault(f"{check.status}: {check.name}", []).append(detail)
    return [f"{check}: {'; '.join(details)}" for check, details in checks.items()]


def _masked(run: StudyRun, label: str) -> list[str]:
    found = run.masking
    if found is None or not found.warned_epochs:
        return []
    epochs = listed([str(epoch) for epoch in found.warned_epochs])
    return [
        f"{label}, seed {run.seed}: the run's own attack overstates robustness in epoch {epochs}; gradients may be "
        f"masked (largest gap on validation {per_cent(found.largest_gap)} %, epoch {found.largest_gap_epoch})."
    ]


def _splits_apart(study: StudyResults) -> list[str]:
    """Returns a line where an arm and the one that it is compared with do not share their split."""
    groups: dict[str, list[str]] = {}
    for arm in study.arms:
        groups.setdefault(arm.reference or arm.id, []).append(arm.id)
    apart = [name for name, arms in groups.items() if len(split_digests(study, [name, *arms])) > 1]
    if not apart:
        return []
    which = "The runs" if len(groups) == 1 else f"The runs that are compared with {listed(apart)}"
    return [f"{which} do not share one data split: their accuracies are not comparable."]


def _images_apart(study: StudyResults, pooled: Any) -> list[str]:
    lines = []
    for metric in study.metrics:
        found = filter(None, (right(pooled, run.arm, run.seed, metric) for run in study.evaluated()))
        if len({frozenset(rows) for rows, _ in found}) > 1:
            lines.append(f"The runs were not evaluated on the same images ({metric_label(metric)}).")
    return lines


def _attacks(study: StudyResults) -> str:
    return "APGD" if APGD in study.metrics and AUTOATTACK not in study.metrics else "AutoAttack"


def _evaluation_files(study: StudyResults) -> str:
    files = [file for run in study.runs for file in run.evaluations]
    folder = next((file.parent.name for file in files), "evaluation")
    is_kept = any(file.name != "outcomes.parquet" for file in files)
    earlier = ", and earlier ones as `evaluation-DIGEST.json` and `outcomes-DIGEST.parquet`" if is_kept else ""
    return f"`evaluation.json` and `outcomes.parquet` in `../runs/RUN/{folder}`{earlier}"


def _evaluated_with(study: StudyResults) -> str:
    attack = APGD if _attacks(study) == "APGD" else AUTOATTACK
    found = [found[0].package_versions for run in study.runs if (found := run.evaluation_by(attack))]
    versions = {", ".join(f"{name} {one}" for name, one in sorted(versions.items())) for versions in found}
    return f" {_attacks(study)} ran with {'; '.join(sorted(versions))}." if versions else ""
