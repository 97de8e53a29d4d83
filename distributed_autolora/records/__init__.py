"""What travels between the layers and onto disk: frozen dataclasses, each with one strict way to and from JSON."""

from distributed_autolora.records.epoch import (
    EpochRecord,
    GradientSimilarity,
    MaskingCheck,
    Passes,
    history_from_json,
    history_to_json,
)
from distributed_autolora.records.evaluation import (
    WORST_CASE,
    Accuracies,
    AccuracyCount,
    AttackResult,
    CorruptionResult,
    Curve,
    CurvePoint,
    Evaluation,
    SanityCheck,
    Status,
    pgd_name,
)
from distributed_autolora.records.reader import from_json, to_json
from distributed_autolora.records.run import Cost, MaskingSummary, RunResult, RunSummary, TrackedRun, total_cost
from distributed_autolora.records.study import (
    ArmRecord,
    Phase,
    PlannedRun,
    RunStatus,
    Settings,
    StudyRecord,
    runs_from_json,
    runs_to_json,
    settings_text,
    study_from_json,
)
