"""What a reader needs to doubt a study's numbers, and to compute them again."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from distributed_autolora.reporting.history import attack_label
from distributed_autolora.reporting.markdown import counted, listed
from distributed_autolora.reporting.study import Study
from distributed_autolora.reporting.study_outcomes import disagreements
from distributed_autolora.reporting.study_schedules import chosen_settings

_PACKAGES = ("distributed-autolora", "torch", "torchvision", "ray", "mlflow", "scipy", "pyautoattack")


def warnings(study: Study, pooled: Any) -> list[str]:
    """Returns one line for every reason to doubt a number of the report."""
    checks: dict[str, list[str]] = {}
    for run in study.runs:
        for check in (run.evaluation or {}).get("sanity") or []:
            if check["status"] != "PASS":
                detail = f"{study.arm(run.arm).label}, seed {run.seed} ({check['detail']})"
                checks.setdefault(f"{check['status']}: {check['name']}", []).append(detail)
    lines = [f"{check}: {'; '.join(details)}" for check, details in checks.items()]
    lines += disagreements(study, pooled)
    for arm in study.arms:
        failed = sum(run.status == "failed" for run in study.of(arm.name, "search"))
        if failed and study.judged(arm.name):
            trials = f"{counted(failed, 'trial')} of the search for {arm.label} failed"
            lines.append(f"{trials[0].upper()}{trials[1:]}: its settings were chosen among the others.")
    digests = _split_digests(study)
    if len(digests) > 1:
        lines.append("The runs do not share one data split: their accuracies are not comparable.")
    attacks = {run.attack for run in study.runs if run.attack}
    if len(attacks) > 1:
        lines.append(
            f"The runs were validated by different attacks: {listed([attack_label(a) for a in sorted(attacks)])}."
        )
    return lines


def reproduction(study: Study, pooled: Any) -> str:
    """Returns the section that says where every number comes from."""
    digests = _split_digests(study)
    chosen = chosen_settings(study)
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
