"""Finds the model that is to be evaluated: a run, a file, or an MLflow URI."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from distributed_autolora.config import IMAGENET_MEAN, IMAGENET_STD, ExperimentConfig
from distributed_autolora.config.reading import nearest
from distributed_autolora.errors import UserError
from distributed_autolora.models.portable import NetworkDescription, PortableModel, read_model
from distributed_autolora.models.weights import read_checkpoint, read_weights
from distributed_autolora.orchestration.evaluations.request import EvaluationRequest
from distributed_autolora.orchestration.mlflow_tracking import default_tracking_uri, download_weights
from distributed_autolora.orchestration.runs.folder import RunFolder

_MLFLOW = re.compile(r"(models|runs):/")
_NETWORK_FLAGS = ("backbone", "num_classes", "mean", "std", "input_size")
_TENSORS_ONLY = "Give --model a file of tensors only, as torch.save(network.state_dict(), FILE) writes it."


@dataclass(frozen=True)
class FoundModel:
    """A model, and what is known about it.

    Attributes:
        name: for people and folders.
        model: the model.
        run: the run that made it, if it is one of ours.
        config: that run's config.
    """

    name: str
    model: PortableModel
    run: RunFolder | None = None
    config: ExperimentConfig | None = None


def find_run_folder(model: str, home: Path) -> RunFolder | None:
    """Returns the run that `model` names, by its folder or by its name; None where it names none.

    Raises:
        UserError: for a run that is not finished.
    """
    for path in (Path(model).expanduser().absolute(), home / "runs" / model):
        folder = RunFolder(path)
        if folder.exists():
            if not folder.is_finished():
                raise UserError(
                    f'Run "{folder.name}" in {path} is not finished: it has no model to judge yet. The command that '
                    "began it continues it."
                )
            return folder
    return None


def find_model(request: EvaluationRequest, run: RunFolder | None, num_classes: int) -> FoundModel:
    """Finds and reads the model that a request names, complete and strictly.

    Args:
        request: the request.
        run: the run that it names; None: no run.
        num_classes: classes of the data, the default for a state dict that does not say.

    Raises:
        UserError: for a wrong path or URI, a damaged file, weights of another network, or flags that describe a network
            which describes itself.
    """
    if run is not None:
        _refuse_network_flags(request, f'run "{run.name}"')
        return _model_of_run(run)
    if _MLFLOW.match(request.model):
        _refuse_network_flags(request, request.model)
        uri = request.mlflow_uri or default_tracking_uri(request.home())
        with tempfile.TemporaryDirectory() as folder:
            model = read_model(download_weights(uri, request.model, Path(folder)))
        return FoundModel(_legal(request.model), model)
    path = Path(request.model).expanduser().absolute()
    if not path.is_file():
        raise UserError(_not_found(request, path))
    if path.suffix == ".pt2":
        raise UserError(f"{path} is an exported program: give the model.safetensors that was written beside it.")
    return FoundModel(_legal(path.stem), _model_of_file(path, request, num_classes))


def _model_of_run(run: RunFolder) -> FoundModel:
    config, path = run.config(), run.path / "model.safetensors"
    description = NetworkDescription.of(config.model, run.result().num_classes)
    model = PortableModel(description, read_weights(path))
    model.build(where=str(path))  # refuses weights that do not fit
    return FoundModel(run.name, model, run, config)


def _model_of_file(path: Path, request: EvaluationRequest, num_classes: int) -> PortableModel:
    checkpoint = read_checkpoint(path, pickle_advice=_TENSORS_ONLY)
    description = NetworkDescription.from_metadata(checkpoint.metadata)
    if description is None:
        if request.backbone is None:
            raise UserError(f"{path} does not say which network it belongs to: give --backbone, such as resnet18.")
        description = NetworkDescription(
            backbone=request.backbone,
            num_classes=request.num_classes or num_classes,
            mean=request.mean or checkpoint.mean or IMAGENET_MEAN,
            std=request.std or checkpoint.std or IMAGENET_STD,
            input_size=request.input_size,
        )
    else:
        _refuse_network_flags(request, str(path))
    model = PortableModel(description, checkpoint.state)
    model.build(where=str(path))  # refuses weights that do not fit
    return model


def _refuse_network_flags(request: EvaluationRequest, model: str) -> None:
    """Refuses flags that would say what the model says itself."""
    given = [f"--{name.replace('_', '-')}" for name in _NETWORK_FLAGS if getattr(request, name) is not None]
    if given:
        raise UserError(
            f"{', '.join(given)} cannot be changed: {model} says itself what network it is and what its images are "
            "scaled by. Leave that out; it is for state dicts that do not say."
        )


def _not_found(request: EvaluationRequest, path: Path) -> str:
    runs = request.home() / "runs"
    names = sorted(folder.name for folder in runs.iterdir() if folder.is_dir()) if runs.is_dir() else []
    return (
        f'There is no model "{request.model}": no file {path}, and no run of that name in {runs}.'
        f"{nearest(request.model, names)} Give --model a run, a file, or models:/NAME/VERSION."
    )


def _legal(name: str) -> str:
    """Returns a name that can be a folder's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "model"
