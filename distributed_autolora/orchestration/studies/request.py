"""What a comparison is asked for: the flags of the comparing program, and the study that they name."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from distributed_autolora.config import ExperimentConfig, RunConfig, output_home
from distributed_autolora.config.file import read_config_file
from distributed_autolora.errors import UserError
from distributed_autolora.records.reader import nearest
from distributed_autolora.studies import CUSTOM_TASK, Study, base_config, study

OWN_ATTACK = "pgd10"
"""Represents the attack that every run is evaluated by."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class CompareFlags:
    """The command line of the comparing program."""

    study: str = "tuned_baselines"
    """tuned_baselines, lora_rank, pretraining_epsilon, automatic_lr, sharpening, gradient_similarity, custom, untuned,
    untuned_finalists, untuned_sizes or batch_norm_shards."""
    task: str = "fashion-mnist-5-9"
    """fashion-mnist-5-9 (shipped), cifar10, cifar100, dtd, dogs, cub, caltech256, or custom for one's own data."""
    data: str | None = None
    """Folder or URI of train*.parquet and test*.parquet; None: the shipped images."""
    weights: str | None = None
    """Pre-trained weights; in pretraining_epsilon with {epsilon} where the file name has the budget."""
    backbone: str | None = None
    """Network of these weights; None: the task's own."""
    config: Path | None = None
    """YAML file, as a run writes it, that replaces the recipe of the task; the arms set method, schedule and grid."""
    seeds: int = 3
    """Final runs of each arm, on seeds 0, 1, ...; the search is on seed 0."""
    arms: tuple[str, ...] = ()
    """Ids of the arms to run, as --dry-run shows them; the report covers only arms asked for so far. Empty: all."""
    scheduler: Literal["grid", "asha"] = "grid"
    """grid: every trial of a search runs to its end; asha: trials that fall behind are stopped early."""
    num_workers: int = 1
    """Training processes of each run; as many runs at a time as the cluster has room for."""
    use_gpu: bool = False
    """One GPU for each worker; the recipes of the paper's tasks want it anyway."""
    gpus: int | None = None
    """So many workers for each run, with one GPU each; 0: no GPU; None: as the recipe, --num-workers and --use-gpu."""
    cpus_per_worker: int | None = None
    """CPUs of each worker; None: as the recipe or the file of --config."""
    attacks: str = OWN_ATTACK
    """pgd10: the accuracies that each run has; else also evaluate the final runs by these, such as autoattack."""
    attack_images: int | None = None
    """Evaluate by --attacks on a stratified subset of this many test images, the same for all runs; None: on all."""
    name: str | None = None
    """Name of the study's folder; None: study, task, and the backbone where one is given."""
    output: str | None = None
    """Folder of all studies and runs; None: $DISTRIBUTED_AUTOLORA_HOME or ~/distributed_autolora."""
    mlflow_uri: str | None = None
    """MLflow tracking URI; None: SQLite in the output folder."""
    dry_run: bool = False
    """Print every run with its passes through the network, and start nothing."""
    report_only: bool = False
    """Write the report anew from what is there, and start nothing."""
    write_hyperparameters: Path | None = None
    """Write the page of the paper's hyperparameters to this file, and do nothing else."""


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """A comparison that is asked for."""

    study: Study
    name: str
    """Of the study's folder."""
    home: Path
    """Absolute output folder."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the final runs; the search uses the first."""
    arms: tuple[str, ...] = ()
    """Ids of those whose runs are made; empty: all."""
    scheduler: Literal["grid", "asha"] = "grid"
    mlflow_uri: str | None = None
    attacks: str = OWN_ATTACK
    attack_images: int | None = None
    """Number of test images for `attacks`; None: all."""
    command: str = ""
    """As it was typed, for the report."""

    @property
    def folder(self) -> Path:
        """Folder of the study."""
        return self.home / "studies" / self.name

    def wants(self, arm: str) -> bool:
        """Tells whether runs of the arm with this id are to be made."""
        return not self.arms or arm in self.arms


def study_request(flags: CompareFlags, command: str) -> StudyRequest:
    """Returns the request of a command line; `command` is the same as it was typed.

    Raises:
        UserError: for an unknown study, task or arm, or a number out of range.
    """
    for flag, value in (("seeds", flags.seeds), ("num-workers", flags.num_workers)):
        if value < 1:
            raise UserError(f"--{flag} is {value}: it must be at least 1.")
    if flags.attack_images is not None and (flags.attack_images < 1 or flags.attacks == OWN_ATTACK):
        raise UserError(
            f"--attack-images is {flags.attack_images}: it must be at least 1, and needs --attacks, such as "
            "--attacks apgd; the accuracies that each run has are on all test images."
        )
    if flags.attacks != OWN_ATTACK:
        from distributed_autolora.evaluation.attacks import parse

        parse(flags.attacks)
    asked = study(flags.study, _base(flags))
    names = [arm.id for arm in asked.arms]
    for arm in flags.arms:
        if arm not in names:
            raise UserError(
                f'--arms: study "{asked.name}" has no arm "{arm}".{nearest(arm, names)} Its arms: {", ".join(names)}.'
            )
    same = ("arms", "scheduler", "mlflow_uri", "attacks", "attack_images")
    return StudyRequest(
        study=asked,
        name=study_name(flags),
        home=output_home(RunConfig(output=flags.output)),
        seeds=tuple(range(flags.seeds)),
        command=command,
        **{name: getattr(flags, name) for name in same},
    )


def study_name(flags: CompareFlags) -> str:
    """Returns the name of the study's folder.

    Raises:
        UserError: for a given name that cannot be a folder's.
    """
    backbone = [flags.backbone.replace("/", "-")] if flags.backbone else []
    name = flags.name or "-".join([flags.study, _task(flags), *backbone])
    if not _NAME.fullmatch(name):
        raise UserError(f'--name is "{name}": use letters, digits, ".", "_" and "-", 100 at most.')
    return name


def _task(flags: CompareFlags) -> str:
    default = CompareFlags().task
    return CUSTOM_TASK if (flags.study, flags.task) == ("custom", default) else flags.task


def _base(flags: CompareFlags) -> ExperimentConfig:
    base = read_config_file(flags.config) if flags.config else None
    base = base_config(
        _task(flags), recipe_config=base, backbone=flags.backbone, weights=flags.weights, data=flags.data
    )
    use_gpu = flags.use_gpu or base.scaling.use_gpu if flags.gpus is None else flags.gpus > 0
    cpus = flags.cpus_per_worker or base.scaling.cpus_per_worker
    workers = flags.gpus or flags.num_workers  # of every trial, whatever the config says
    scaling = replace(base.scaling, num_workers=workers, max_workers=None, use_gpu=use_gpu, cpus_per_worker=cpus)
    return replace(base, scaling=scaling)
