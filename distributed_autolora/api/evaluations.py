"""Evaluations and attacks of any model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from distributed_autolora.api.cluster import ray_at
from distributed_autolora.api.runs import Run
from distributed_autolora.config.experiment import fraction
from distributed_autolora.core import attacks as core_attacks
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.files import read_json
from distributed_autolora.models.own_backbone import register_backbone
from distributed_autolora.models.portable import NetworkDescription, PortableModel
from distributed_autolora.models.pretrained import PretrainedClassifier, load_model
from distributed_autolora.orchestration.evaluations import evaluate as evaluations
from distributed_autolora.orchestration.evaluations.folder import RESULT_FILE
from distributed_autolora.orchestration.evaluations.request import EvaluationRequest
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.records import Evaluation, from_json
from distributed_autolora.reporting.evaluation import evaluation_table


@dataclass(frozen=True)
class Report:
    """A finished evaluation: its folder, and what it found."""

    folder: Path
    evaluation: Evaluation

    @property
    def metrics(self) -> dict[str, float]:
        """Accuracies in [0, 1] by name: "natural_accuracy", "robust_accuracy/apgd", ..."""
        return {name: count.accuracy for name, count in self.evaluation.accuracies().items()}

    def __str__(self) -> str:
        return evaluation_table(self.evaluation)


def evaluate(
    model: str | Path | Run | nn.Module,
    data: str | Path | None = None,
    *,
    attacks: str = "pgd10,autoattack",
    epsilon: float | str | None = None,
    workers: int = 0,
    gpus: int | None = None,
    address: str | None = None,
    **flags: Any,
) -> Report:
    """Evaluates a model by adversarial attacks, as `autolora evaluate` does; the same call resumes.

    Args:
        model: a run, a folder of `save_pretrained`, a weights file, a URI of MLflow, or any module that maps images
            [n, C, H, W] in [0, 1] to logits.
        data: folder or URI with test*.parquet; None: the run's own.
        epsilon: None: that of the model's training, where it states one.
        workers: processes of Ray; 0: this process, without Ray.
        gpus: so many workers with one GPU each; None or 0: no GPU.
        flags: further flags of `autolora evaluate`, with "_": images, sanity, norm, output, ...

    Raises:
        UserError: for bad input, before any work starts wherever it can be known.
    """
    if isinstance(model, str | Path) and (Path(model).expanduser() / "config.json").is_file():
        model = load_model(model)
    portable, name, run = None, str(model), None
    if isinstance(model, Run):
        name, run = str(model.folder), RunFolder(model.folder)
    elif isinstance(model, PretrainedClassifier):
        portable, name = model.portable(), str(model.about.get("run", "model"))
        epsilon = model.about.get("epsilon") if epsilon is None else epsilon
        flags = {key: model.about[key] for key in ("norm", "image_size") if model.about.get(key)} | flags
    elif isinstance(model, nn.Module):
        portable, name = _portable(model), type(model).__name__
    request = EvaluationRequest(
        **{"export": False, "sanity": False, **flags},
        model=name,
        data=None if data is None else str(data),
        attacks=attacks,
        epsilon=fraction(epsilon) if isinstance(epsilon, str) else epsilon,
        num_workers=gpus or workers,
        use_gpu=bool(gpus),
    )
    with ray_at(address):
        folder = evaluations.evaluate(request, run, portable)
    return Report(folder, from_json(Evaluation, read_json(folder / RESULT_FILE), RESULT_FILE))


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    norm: Any = "linf",
    steps: int = 10,
    step_size: float | None = None,
    random_start: bool = True,
) -> Tensor:
    """Returns adversarial images [n, C, H, W] of images `x` in [0, 1] with labels `y`, by projected gradient descent.

    A step has the length epsilon / 4 unless `step_size` is given. The model is attacked in eval mode.
    """
    ball, length = ThreatModel(norm, epsilon), epsilon / 4 if step_size is None else step_size
    return core_attacks.pgd(
        model, x, y, threat_model=ball, num_steps=steps, step_size=length, random_start=random_start
    )


def _portable(model: nn.Module) -> PortableModel:
    """Returns any module as a model that takes images in [0, 1] as they are."""
    name = register_backbone(model, None)
    first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    channels = 3 if first is None else first.in_channels
    described = NetworkDescription(backbone=name, num_classes=1, mean=(0.0,) * channels, std=(1.0,) * channels)
    return PortableModel(described, {key: value.cpu() for key, value in model.state_dict().items()})
