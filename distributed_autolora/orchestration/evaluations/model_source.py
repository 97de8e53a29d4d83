"""Finds the model that is to be evaluated: a run, a file, or an MLflow URI."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from distributed_autolora.config import IMAGENET_MEAN, IMAGENET_STD
from distributed_autolora.errors import UserError
from distributed_autolora.models.checkpoint_formats import Checkpoint, taken_out
from distributed_autolora.models.portable import NetworkDescription, PortableModel, read_model, stated_classes
from distributed_autolora.models.weight_files import read_checkpoint, read_weights
from distributed_autolora.orchestration.evaluations.request import EvaluationRequest
from distributed_autolora.orchestration.mlflow_tracking import default_tracking_uri, download_weights
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.records.reader import nearest

_MLFLOW = re.compile(r"(models|runs):/")
_NETWORK_FLAGS = ("backbone", "num_classes", "mean", "std", "input_size")
_TENSORS_ONLY = "Give --model a file of tensors only, as torch.save(network.state_dict(), FILE) writes it."


@dataclass(frozen=True)
class FoundModel:
    """A model with a name for messages and folders, and the run that it comes from, if any."""

    name: str
    model: PortableModel
    run: RunFolder | None = None


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
                    f'Run "{folder.name}" in {path} is not finished: it has no model yet. The command that started '
                    "it resumes it."
                )
            return folder
    return None


def find_model(request: EvaluationRequest, run: RunFolder | None, num_classes: int) -> FoundModel:
    """Finds and reads the model that a request names, or that of a run, complete and strictly.

    A state dict without a description has `num_classes` outputs unless the request says otherwise.

    Raises:
        UserError: for a wrong path or URI, a damaged file, weights of another network, or flags that describe a network
            which describes itself.
    """
    found = _found(request, run, num_classes)
    found.model.build(where=request.model)  # refuses weights that do not fit
    return found


def _found(request: EvaluationRequest, run: RunFolder | None, num_classes: int) -> FoundModel:
    if run is not None:
        _refuse_network_flags(request)
        names = run.result().class_names
        description = NetworkDescription.of(run.config().model, len(names))
        weights = read_weights(run.path / "model.safetensors")
        return FoundModel(run.name, PortableModel(description, weights, names), run)
    if _MLFLOW.match(request.model):
        _refuse_network_flags(request)
        uri = request.mlflow_uri or default_tracking_uri(request.home())
        with tempfile.TemporaryDirectory() as folder:
            model = read_model(download_weights(uri, request.model, Path(folder)))
        return FoundModel(_legal(request.model), model)
    path = Path(request.model).expanduser().absolute()
    if not path.is_file():
        runs = request.home() / "runs"
        known = sorted(folder.name for folder in runs.iterdir() if folder.is_dir()) if runs.is_dir() else []
        raise UserError(
            f'There is no model "{request.model}": no file {path}, and no run of that name in {runs}.'
            f"{nearest(request.model, known)} Give --model a run, a file, or models:/NAME/VERSION."
        )
    if path.suffix == ".pt2":
        raise UserError(f"{path} is an exported program: give the model.safetensors that was written beside it.")
    checkpoint = read_checkpoint(path, pickle_advice=_TENSORS_ONLY)
    description = _description(request, checkpoint, num_classes)
    own = [name for name in description.build().backbone.state_dict() if not name.endswith("num_batches_tracked")]
    state = taken_out(request.model, checkpoint.state, own)
    model = PortableModel(description, state, stated_classes(checkpoint.metadata))
    return FoundModel(_legal(path.stem), model)


def _description(request: EvaluationRequest, checkpoint: Checkpoint, num_classes: int) -> NetworkDescription:
    description = NetworkDescription.from_metadata(checkpoint.metadata)
    if description is not None:
        _refuse_network_flags(request)
        return description
    if request.backbone is None:
        raise UserError(f"{request.model} does not state its network: give --backbone, such as resnet18.")
    return NetworkDescription(
        backbone=request.backbone,
        num_classes=request.num_classes or num_classes,
        mean=request.mean or checkpoint.mean or IMAGENET_MEAN,
        std=request.std or checkpoint.std or IMAGENET_STD,
        input_size=request.input_size,
    )


def _refuse_network_flags(request: EvaluationRequest) -> None:
    given = [f"--{name.replace('_', '-')}" for name in _NETWORK_FLAGS if getattr(request, name) is not None]
    if given:
        raise UserError(
            f"{', '.join(given)} cannot be changed: {request.model} states its network and its normalisation. Leave "
            "the flags out; they are for state dicts that do not."
        )


def _legal(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "model"
