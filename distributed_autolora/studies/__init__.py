"""Named comparisons (the paper's tables, and beyond): which arms, which values, which of them are searched."""

from dataclasses import replace

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.config.recipes import PAPER_HYPERPARAMETERS, recipe
from distributed_autolora.errors import UserError
from distributed_autolora.records.reader import nearest
from distributed_autolora.studies.definition import Arm, Study, with_settings
from distributed_autolora.studies.hyperparameters import hyperparameters_page
from distributed_autolora.studies.tables import (
    EMBEDDED_TASK,
    automatic_lr,
    custom,
    gradient_similarity,
    lora_rank,
    pretraining_epsilon,
    sharpening,
    tuned_baselines,
)
from distributed_autolora.studies.untuned import batch_norm_shards, untuned, untuned_finalists, untuned_sizes

_OF_THE_PAPER = (tuned_baselines, lora_rank, pretraining_epsilon, automatic_lr, sharpening, gradient_similarity)
_BEYOND = (custom, untuned, untuned_finalists, untuned_sizes, batch_norm_shards)
STUDIES = {function.__name__: function for function in (*_OF_THE_PAPER, *_BEYOND)}
"""All studies by name; each takes the config that its arms share."""
CUSTOM_TASK = "custom"
TASKS = (EMBEDDED_TASK, *PAPER_HYPERPARAMETERS, CUSTOM_TASK)
"""Tasks that a study can be built on; "custom" is one's own data."""


def base_config(
    task: str,
    *,
    recipe_config: ExperimentConfig | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    data: str | None = None,
) -> ExperimentConfig:
    """Returns what all arms of a study on a task share; what is None is the task's own, if any.

    Raises:
        UserError: for an unknown task.
    """
    if task not in TASKS:
        raise UserError(f'There is no task "{task}".{nearest(task, list(TASKS))} Known tasks: {", ".join(TASKS)}.')
    base = recipe_config or recipe("demo-study" if task == EMBEDDED_TASK else task)
    return replace(
        base,
        data=replace(base.data, task=task, path=data or base.data.path),
        model=replace(base.model, backbone=backbone or base.model.backbone, weights=weights or base.model.weights),
        evaluation=replace(base.evaluation, linear_head=False),
    )


def study(name: str, base: ExperimentConfig) -> Study:
    """Returns the named study on the config that its arms share.

    Raises:
        UserError: for an unknown name, or a base that the study cannot be built on.
    """
    if name not in STUDIES:
        raise UserError(
            f'There is no study "{name}".{nearest(name, list(STUDIES))} Known studies: {", ".join(STUDIES)}.'
        )
    return STUDIES[name](base)
