"""One experiment, described: sections, recipes, strict reading, YAML. Standard library and YAML only."""

from distributed_autolora.config.experiment import ExperimentConfig, output_home
from distributed_autolora.config.sections import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AttackConfig,
    ComputeConfig,
    DataConfig,
    EvaluationConfig,
    MethodConfig,
    ModelConfig,
    OptimizationConfig,
    Precision,
    RunConfig,
    ScalingConfig,
    ScheduleConfig,
    ThreatModelConfig,
)
