"""How large the low-rank branch of each arm is, for the study of its rank (the paper's Table 3)."""

from __future__ import annotations

from distributed_autolora.reporting.study import Study, StudyRun


def branch_ratios(study: Study) -> dict[str, str]:
    """Returns {arm: "4.66% (4.87%)"} for a study of Table 3, empty for any other.

    First the branch over the feature extractor; in brackets as Table 3 counts it (branch, batch norms called "bn" and
    head over the whole classifier).
    """
    if "3" not in (study["paper_tables"] or []):
        return {}
    ratios = {}
    for arm in study.arms:
        runs = [run for run in study.of(arm.name, "final") if run.config()]
        if runs:
            ratio, table3 = _of_run(runs[0])
            ratios[arm.name] = f"{ratio:.2%} ({table3:.2%})"
    return ratios


def _of_run(run: StudyRun) -> tuple[float, float]:
    result = run.result or {}
    from distributed_autolora.config import ExperimentConfig
    from distributed_autolora.core.lora import LowRankBranch, parameter_ratio, table3_ratio
    from distributed_autolora.models import build

    config = ExperimentConfig.from_dict(run.config())
    model, method = config.model, config.method
    classifier = build(model.backbone, result.get("num_classes", 10), mean=model.mean, std=model.std)
    backbone, head = classifier.backbone, classifier.head_name
    branch = LowRankBranch(backbone, method.lora_rank, method.lora_scope, head)
    return parameter_ratio(backbone, branch, head), table3_ratio(backbone, branch, head)
