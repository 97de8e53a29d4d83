"""Everything that an evaluation needs, found and checked before any work starts."""

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distributed_autolora.config import DataConfig, ExperimentConfig
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.data.augmentation import to_unit_interval
from distributed_autolora.data.catalog import EMBEDDED_TASK, data_folder
from distributed_autolora.data.class_names import label_map
from distributed_autolora.data.images import ImageSource
from distributed_autolora.data.parquet.digest import data_digest
from distributed_autolora.data.parquet.locations import is_uri
from distributed_autolora.data.parquet.reader import ImageTable, with_protocol
from distributed_autolora.data.splits import stratified_subset
from distributed_autolora.errors import UserError
from distributed_autolora.evaluation.attacks import CORRUPTIONS, parse, parts_for
from distributed_autolora.evaluation.chunks import Chunk, Columns, cut
from distributed_autolora.models.portable import PortableModel
from distributed_autolora.orchestration.evaluations.folder import EvaluationFolder
from distributed_autolora.orchestration.evaluations.model_checks import check_inputs, find_corruptions_of
from distributed_autolora.orchestration.evaluations.model_source import FoundModel, find_model, find_run_folder
from distributed_autolora.orchestration.evaluations.request import EvaluationRequest
from distributed_autolora.orchestration.evaluations.transfer import ADVERSARIAL_FILE, find_surrogate, write_adversarial
from distributed_autolora.orchestration.evaluations.worker import EvaluationTask, cut_for, open_test_split, table_digest
from distributed_autolora.orchestration.runs.checked_data import CHECKED_DATA
from distributed_autolora.orchestration.runs.folder import RunFolder

_PROTOCOL = 1
"""Raise it with every change of this package that gives an image another outcome: earlier chunks do not count then."""

_PACKAGES = ("torch", "torchvision", "timm", "pillow", "pyautoattack", "ray")
_NOT_DECIDING = ("python", "ray")
_BATCH = 250


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One evaluation, ready to be carried out."""

    request: EvaluationRequest
    found: FoundModel
    task: EvaluationTask
    images: ImageSource
    variant: str
    """Suffix of the folder where threat model or images are not the run's own, or not all: "-64-images"; else empty."""
    folder: EvaluationFolder

    @property
    def table(self) -> ImageTable:
        """The test images."""
        return self.images.table

    @property
    def place(self) -> str:
        """The folder of the results, relative to the run's parent if it is in the run's own folder."""
        run, path = self.found.run, self.folder.path
        return str(path.relative_to(run.path.parent)) if run is not None and run.path in path.parents else str(path)

    @property
    def surrogate(self) -> str:
        """Name of the model or file that the attack "transfer" takes its images from; empty: none."""
        return "" if self.request.surrogate is None else Path(self.request.surrogate).name

    def write_adversarial(self, outcomes: Columns) -> None:
        """Writes the adversarial images of all outcomes to the evaluation's folder."""
        task, shape = self.task, tuple(self.images.images(torch.zeros(1, dtype=torch.int64)).shape[1:])
        path = self.folder.path / ADVERSARIAL_FILE
        write_adversarial(
            path, outcomes, model=task.model, images=task.table_digest, ball=task.threat_model, shape=shape
        )

    def chunks(self) -> tuple[Chunk, ...]:
        """Returns the chunks, which depend on images, chunk size, seed and kind of device alone."""
        return cut_for(self.request, self.task)

    def batches(self, size: int = _BATCH) -> Iterator[Tensor]:
        """Yields the evaluated images, float32 [n, C, H, W] in [0, 1]."""
        for rows in torch.tensor(self.task.rows).split(size):
            yield to_unit_interval(self.images.images(rows))


def make_plan(request: EvaluationRequest, run: RunFolder | None = None, model: PortableModel | None = None) -> Plan:
    """Finds model and data of a request, and refuses what would fail later.

    The run is the finished one whose model it is; None: found by `request.model`, or no run.
    A `model` is taken instead of that of the request.

    Raises:
        UserError: for wrong flags, a wrong path or URI, a damaged file, weights of another network, or a model
            that does not take these images or has another number of classes.
    """
    request.validate()
    named = parse(request.attacks)
    attacks = tuple(attack for attack in named if attack.name != CORRUPTIONS)
    if model is None:
        run = run or find_run_folder(request.model, request.home())
    config = None if run is None else run.config()
    folder, digest = _data(request, config)
    threat_model, step_size = _threat_model(request, config)
    size = request.image_size or (config.data.image_size if config is not None else None)
    table = open_test_split(folder, digest, size, request.cache)
    found = FoundModel(request.model, model) if model else find_model(request, run, len(table.class_names))
    names = found.model.class_names or table.class_names
    for attack in attacks:
        parts_for(attack, len(names))  # refuses one that cannot run
    surrogate = find_surrogate(request, attacks, found, len(names))
    task = EvaluationTask(
        model=found.model,
        data_folder=folder,
        data_digest=digest,
        table_digest=table_digest(table),
        rows=_rows(request, table),
        image_size=size,
        cache=request.cache,
        threat_model=threat_model,
        attacks=attacks,
        step_size=step_size,
        label_map=label_map(table, names, found.name),
        surrogate=surrogate.model if isinstance(surrogate, FoundModel) else surrogate,
        save_adversarial=request.save_adversarial,
    )
    task = replace(task, corruptions=find_corruptions_of(request, named, table, task.images_of(table)))
    table = task.with_labels(table)
    images = task.images_of(table)
    check_inputs(task, found, surrogate, images)
    variant = _variant(task, config, table)
    path = _output(request, found, table, variant)
    evaluation = EvaluationFolder(path, evaluation_digest(request, task))
    return Plan(request=request, found=found, task=task, images=images, variant=variant, folder=evaluation)


def evaluation_digest(request: EvaluationRequest, task: EvaluationTask) -> str:
    """Returns the SHA-256 of all that determines the outcome: not of the workers, paths or names."""
    values = {
        "protocol": _PROTOCOL,
        "model": task.model.digest(),
        "data": task.data_digest,
        "rows": task.rows,
        "image_size": task.image_size,
        "threat_model": [task.threat_model.norm, task.threat_model.epsilon],
        "attacks": [attack.name for attack in task.attacks],
        "step_size": task.step_size,
        "chunk_size": request.chunk_size,
        "seed": request.seed,
        "device": "gpu" if request.use_gpu else "cpu",
        "packages": {name: version for name, version in package_versions().items() if name not in _NOT_DECIDING},
    }
    if (chunks := cut_for(request, task)) != cut(len(task.rows), request.chunk_size, request.seed):
        values["chunks"] = [chunk.stop for chunk in chunks]
    if task.save_adversarial:
        values["save_adversarial"] = True
    if task.corruptions is not None:
        values["corruptions"] = task.corruptions.digest
    if task.surrogate is not None:
        values["surrogate"] = task.surrogate.digest()
    if task.label_map is not None:
        values["label_map"] = task.label_map
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def package_versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that an outcome may depend on."""
    versions: dict[str, Any] = {"python": sys.version.split()[0]}
    return versions | {name: importlib.metadata.version(name) for name in _PACKAGES}


def task_name(table: ImageTable) -> str:
    """Returns the name of a table's task, with its protocol unless that is "clean"."""
    return with_protocol(table.card["task"], table.protocol)


def _data(request: EvaluationRequest, config: ExperimentConfig | None) -> tuple[str, str]:
    """Returns the folder of the images, and the digest of its files."""
    if request.data is None:
        if config is None:
            raise UserError(f"Give --data: a folder with test*.parquet, or {EMBEDDED_TASK}.")
        folder = data_folder(config.data)
        digest, trained = data_digest(folder, request.home() / CHECKED_DATA), config.data.digest
        if trained not in (None, digest):
            raise UserError(
                f"The images are not those that the run was trained on (digest {digest[:12]}, not "
                f"{str(trained)[:12]}). Restore them, or name other images with --data."
            )
        return folder, digest
    name = request.data
    there = is_uri(name) or Path(name).expanduser().exists()
    if not there and name != EMBEDDED_TASK:
        raise UserError(
            f"Data: there is no folder {name}, and no shipped task but {EMBEDDED_TASK}. Give --data one of them."
        )
    folder = data_folder(DataConfig(path=name) if there else DataConfig(task=name))
    return folder, data_digest(folder, request.home() / CHECKED_DATA)


def _threat_model(request: EvaluationRequest, config: ExperimentConfig | None) -> tuple[ThreatModel, float | None]:
    """Returns the threat model and the length of a PGD step: both of a run where they are its own."""
    own = None if config is None else config.threat_model
    norm = request.norm or (own.norm if own is not None else "linf")
    if config is not None and own is not None and norm == own.norm and request.epsilon in (None, own.epsilon):
        return ThreatModel(norm, own.epsilon), config.eval_attack.step_size
    if request.epsilon is None:
        raise UserError(
            f"Give --epsilon, such as {'0.5' if norm == 'l2' else '8/255'}: only a run states the threat model of its "
            "training, and that in one norm."
        )
    if norm == "linf" and request.epsilon > 1:
        raise UserError(f"--epsilon is {request.epsilon}: in the norm linf it is at most 1; pixels are in [0, 1].")
    return ThreatModel(norm, request.epsilon), None


def _rows(request: EvaluationRequest, table: ImageTable) -> tuple[int, ...]:
    if len(table) == 0:
        raise UserError(f"{table.where} has no images: give others with --data.")
    if request.images is None:
        return tuple(range(len(table)))
    return tuple(stratified_subset(table.labels, request.images, request.seed).tolist())


def _variant(task: EvaluationTask, config: ExperimentConfig | None, table: ImageTable) -> str:
    """Returns the suffix of the folder, empty for all images under a run's own threat model."""
    parts = []
    if config is not None:
        if config.data.digest not in (None, task.data_digest):
            parts.append(f"on-{task_name(table) or task.data_digest[:8]}")
        if task.threat_model.norm != config.threat_model.norm:
            parts.append(task.threat_model.norm)
        if task.threat_model.epsilon != config.threat_model.epsilon:
            parts.append(f"epsilon-{task.threat_model.epsilon:.4g}")
    if len(task.rows) < len(table):
        parts.append(f"{len(task.rows)}-images")
    return "".join(f"-{part}" for part in parts)


def _output(request: EvaluationRequest, found: FoundModel, table: ImageTable, variant: str) -> Path:
    if request.output is not None:
        return Path(request.output).expanduser().absolute()
    if found.run is not None:
        return found.run.path / f"evaluation{variant}"
    suffix = f"-on-{task_name(table)}" if table.card["task"] else ""
    return request.home() / "evaluations" / f"{found.name}-{found.model.digest()[:8]}{suffix}{variant}"
