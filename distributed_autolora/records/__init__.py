"""What travels between the layers and onto disk: frozen dataclasses, each with one strict way to and from JSON."""

from distributed_autolora.records.accuracy import Accuracies, AccuracyCount
from distributed_autolora.records.epoch import (
    EpochRecord,
    GradientSimilarity,
    MaskingCheck,
    Passes,
    history_from_json,
    history_to_json,
)
from distributed_autolora.records.evaluation import (
    AttackResult,
    Curve,
    CurvePoint,
    Evaluation,
    SanityCheck,
    Status,
    evaluation_from_json,
    evaluation_to_json,
    pgd_name,
)
from distributed_autolora.records.flat import series, value
from distributed_autolora.records.run import (
    Cost,
    MaskingSummary,
    RunResult,
    RunSummary,
    TrackedRun,
    result_from_json,
    result_to_json,
)

__all__ = [
    "Accuracies",
    "AccuracyCount",
    "AttackResult",
    "Cost",
    "Curve",
    "CurvePoint",
    "EpochRecord",
    "Evaluation",
    "GradientSimilarity",
    "MaskingCheck",
    "MaskingSummary",
    "Passes",
    "RunResult",
    "RunSummary",
    "SanityCheck",
    "Status",
    "TrackedRun",
    "evaluation_from_json",
    "evaluation_to_json",
    "history_from_json",
    "history_to_json",
    "pgd_name",
    "result_from_json",
    "result_to_json",
    "series",
    "value",
]
