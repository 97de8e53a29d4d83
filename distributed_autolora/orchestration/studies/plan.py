"""What a study consists of: its record, its runs and their names, and which trial of a search is the best."""

import hashlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from distributed_autolora.config import DataConfig, ExperimentConfig
from distributed_autolora.data.parquet.reader import protocol_of, read_texts, with_protocol
from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.runs.preflight import check_inputs, find_inputs
from distributed_autolora.orchestration.studies.request import OWN_ATTACK, StudyRequest
from distributed_autolora.records import ArmRecord, Phase, PlannedRun, Settings, StudyRecord, settings_text
from distributed_autolora.studies import Arm, Study, with_settings

_LONGEST_NAME = 90


def checked_study(study: Study) -> Study:
    """Checks the data and weights of every arm, and returns the study with their digests filled in.

    Raises:
        UserError: for images or weights that do not fit.
    """
    arms = []
    seen: set[object] = set()
    for arm in study.arms:
        config, inputs = find_inputs(arm.config)
        # A study is of the task that was asked for, whose hyperparameters it takes; `images` names the files' own.
        task = with_protocol(arm.config.data.task, protocol_of(read_texts(inputs.data_folder, "train")))
        config = replace(config, data=replace(config.data, task=task))
        if config.model.weights is None:
            raise UserError("A study compares ways of fine-tuning a pre-trained network: give its file with --weights.")
        key = (config.data, config.model, config.method.name)
        for warning in check_inputs(config, inputs) if key not in seen else ():
            if warning not in seen:
                print(f"warning: {warning}", file=sys.stderr)
            seen.add(warning)
        seen.add(key)
        arms.append(replace(arm, config=config))
    return replace(study, arms=tuple(arms))


def plan_search(study: Study, seed: int) -> list[PlannedRun]:
    """Returns one run for each point of each arm's grid, on the search seed."""
    return [planned(arm.id, "search", seed, settings) for arm in study.arms if arm.grid for settings in arm.points()]


def plan_final(study: Study, seeds: Sequence[int], best: Mapping[str, Settings]) -> list[PlannedRun]:
    """Returns one run for each arm and seed; those of a searched arm without a best trial so far have no name."""
    return [
        PlannedRun(arm.id, "final", seed, {}, None)
        if arm.grid and arm.id not in best
        else planned(arm.id, "final", seed, best.get(arm.id, {}))
        for arm in study.arms
        for seed in seeds
    ]


def planned(arm: str, phase: Phase, seed: int, settings: Settings) -> PlannedRun:
    """Returns a pending run with its name."""
    words = " ".join(filter(None, [phase, arm, settings_text(settings)])).replace("=", "").replace("+", "")
    name = re.sub(r"[^A-Za-z0-9.]+", "-", words)[:_LONGEST_NAME].strip("-.")
    return PlannedRun(arm, phase, seed, dict(settings), f"{name}-seed{seed}")


def batches(runs: Iterable[PlannedRun], *, by_seed: bool) -> list[list[PlannedRun]]:
    """Returns runs in the order of their seeds: all at once, or each seed for itself, so that early numbers compare."""
    ordered = sorted(runs, key=lambda run: run.seed)
    return [list(group) for _, group in groupby(ordered, key=lambda run: run.seed)] if by_seed else [ordered]


def run_config(arm: Arm, run: PlannedRun, *, output: str, mlflow_uri: str | None) -> ExperimentConfig:
    """Returns the config of a run that has a name: a search never opens the test split, a final run reads it once."""
    config = with_settings(arm.config, run.settings)
    return replace(
        config,
        seed=run.seed,
        evaluation=replace(config.evaluation, test_split=run.phase == "final", linear_head=False),
        run=replace(config.run, name=run.run, output=output, mlflow_uri=mlflow_uri),
    )


def best_trial(trials: Iterable[tuple[PlannedRun, float | None]]) -> Settings | None:
    """Returns the settings of the finished trial with the highest validation score (of equals the first), if any."""
    finished = [(run, score) for run, score in trials if run.status == "finished" and score is not None]
    return max(finished, key=lambda pair: pair[1])[0].settings if finished else None


def study_record(request: StudyRequest) -> StudyRecord:
    """Returns what study.json holds of a new study."""
    study = request.study
    first = study.arms[0].config
    return StudyRecord(
        study=study.name,
        title=study.title,
        task=first.data.task,
        images=_own_images(first.data),
        paper_tables=study.paper_tables,
        backbone=first.model.backbone,
        pretraining=_pretraining(study),
        epsilon=first.threat_model.epsilon,
        norm=first.threat_model.norm,
        seeds=request.seeds,
        search_seed=request.seeds[0],
        scheduler=request.scheduler,
        reference=study.reference,
        arms=tuple(
            ArmRecord(
                id=arm.id,
                label=arm.label,
                grid=dict(arm.grid),
                reference=arm.reference,
                config_digest=hashlib.sha256(arm.config.digest().encode()).hexdigest()[:16],
            )
            for arm in study.arms
        ),
        attack_images=None if request.attacks == OWN_ATTACK else request.attack_images,
        commands=(request.command,) if request.command else (),
    )


def _own_images(data: DataConfig) -> str | None:
    """Returns the name in the files of images from elsewhere, where that is not the task's name."""
    name = None if data.path is None else str(read_texts(data.path, "train").get("task", ""))
    return name if name not in ("", data.task) else None


def _pretraining(study: Study) -> str:
    weights = {arm.config.model.weights for arm in study.arms}
    if len(weights) > 1:
        return "by arm"
    return "the shipped backbone" if weights == {"embedded"} else str(weights.pop())
