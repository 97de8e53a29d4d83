"""Runs: fine-tune, and what a finished run holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from torch import nn

from distributed_autolora.api.cluster import ray_at
from distributed_autolora.config import ExperimentConfig, RunConfig, output_home
from distributed_autolora.config.file import read_config_file
from distributed_autolora.config.flags import SHORT
from distributed_autolora.config.recipes import RECIPES, recipe
from distributed_autolora.data.catalog import data_folder
from distributed_autolora.errors import UserError
from distributed_autolora.models.own_backbone import OWN, register_backbone
from distributed_autolora.models.portable import NetworkDescription, PortableModel
from distributed_autolora.models.pretrained import PretrainedClassifier
from distributed_autolora.models.weight_files import read_weights
from distributed_autolora.models.weights import save_weights
from distributed_autolora.orchestration.evaluations.model_source import find_run_folder
from distributed_autolora.orchestration.evaluations.post_training import NONE, check_attacks, evaluate_finished
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.orchestration.runs.train import train_run
from distributed_autolora.records import RunResult
from distributed_autolora.reporting.run.figure import curves_figure
from distributed_autolora.reporting.run.table import result_table


@dataclass(frozen=True)
class Run:
    """A finished fine-tuning run.

    Attributes:
        folder: where its files are (docs/running.md).
        result: all that it found.
    """

    folder: Path
    result: RunResult

    @property
    def metrics(self) -> dict[str, float]:
        """Accuracies of the final model in [0, 1]: "test/natural_accuracy", "test/robust_accuracy", "val/...".

        Those of the untouched backbone are "test/linear_head/...". The test split's are missing if it stayed closed.
        """
        parts = {"val": self.result.val, "test": self.result.test, "test/linear_head": self.result.linear_head}
        return {
            f"{split}/{kind}_accuracy": count.accuracy
            for split, part in parts.items()
            if part is not None
            for kind, count in (("natural", part.natural), ("robust", part.robust))
        }

    def history(self) -> pd.DataFrame:
        """Returns one row an epoch, with the logged numbers as columns (docs/metrics.md)."""
        return pd.DataFrame([record.metrics() for record in RunFolder(self.folder).history()]).set_index("epoch")

    def plot(self) -> Figure:
        """Returns the figure of accuracies, learning rate, loss weights and time by epoch."""
        return curves_figure(RunFolder(self.folder).history(), self.result)

    def model(self) -> PretrainedClassifier:
        """Returns the model of the epoch chosen on validation, in eval mode: images in [0, 1] in, logits out."""
        config = RunFolder(self.folder).config()
        described = NetworkDescription.of(config.model, self.result.num_classes)
        weights = read_weights(self.folder / "model.safetensors")
        about = {
            "norm": config.threat_model.norm,
            "epsilon": self.result.epsilon,
            "image_size": config.data.image_size,
            "run": self.result.name,
            "metrics": self.metrics,
        }
        return PretrainedClassifier(PortableModel(described, weights, self.result.class_names), about)

    def __str__(self) -> str:
        return result_table(self.result, RunFolder(self.folder).history())


def finetune(
    config: str | Path | ExperimentConfig = "custom",
    *,
    data: str | Path | None = None,
    weights: str | Path | None = None,
    backbone: str | nn.Module | None = None,
    head: str = "fc",
    epochs: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    epsilon: float | str | None = None,
    method: str | None = None,
    seed: int | None = None,
    name: str | None = None,
    output: str | Path | None = None,
    mlflow_uri: str | None = None,
    values: Mapping[str, Any] | None = None,
    workers: int | None = None,
    gpus: int | None = None,
    address: str | None = None,
    in_process: bool = False,
    fresh: bool = False,
    attacks: str = NONE,
) -> Run:
    """Fine-tunes a pre-trained network robustly, as `autolora finetune` does, and returns the run.

    The same call resumes an interrupted run, and returns a finished one without training again.

    Args:
        config: a recipe's name, a YAML file, or a config; what is None below is as it says.
        data: folder or URI of train*.parquet and test*.parquet (`autolora data prepare`, `write_dataset`).
        backbone: a network's name, or your own module; its `head` names its last `nn.Linear`, and its weights are those
            that it has now, unless `weights` is given.
        epsilon: largest perturbation of a pixel value in [0, 1], also as "8/255".
        values: further values by their keys: {"schedule.rule": "paired"}.
        gpus: so many workers with one GPU each; 0: no GPU.
        address: of a Ray cluster; None: that of $RAY_ADDRESS, or a local Ray.
        in_process: train and evaluate in this process, as one worker without Ray; there are checkpoints as well.
        fresh: start another run even if one of this config exists.
        attacks: attacks to evaluate the finished model by, as of `autolora finetune --evaluate`.

    Raises:
        UserError: for bad input, before any work starts wherever it can be known.
    """
    keys = _keys(
        lr=lr, epochs=epochs, batch_size=batch_size, method=method, name=name, seed=seed, epsilon=epsilon, data=data,
        workers=gpus or workers, output=output, weights=weights, mlflow_uri=mlflow_uri,
        backbone=backbone if isinstance(backbone, str) else None,
    )  # fmt: skip
    if gpus is not None:
        keys["scaling.use_gpu"] = gpus > 0
    chosen = _changed(_config(config), {**keys, **(values or {})})
    if isinstance(backbone, nn.Module):
        chosen = _with_own_backbone(chosen, backbone, head)
    check_attacks(attacks, data_folder(chosen.data))
    with ray_at(address):
        finished = train_run(chosen, fresh=fresh, in_process=in_process)
        if attacks != NONE:
            evaluate_finished(finished.folder, attacks, in_process=in_process)
    return Run(finished.folder.path, finished.result)


def load_run(run: str | Path, *, output: str | Path | None = None) -> Run:
    """Returns a finished run by its name or its folder.

    Raises:
        UserError: where there is none, or it is not finished.
    """
    found = find_run_folder(str(run), output_home(RunConfig(output=None if output is None else str(output))))
    if found is None:
        raise UserError(f'There is no run "{run}": give the name or the folder of a finished one.')
    return Run(found.path, found.result())


def _keys(**given: Any) -> dict[str, Any]:
    """Returns {key of a config: value} of what was given by the short names of flags, with "_"."""
    flags = {name: f"--{name.replace('_', '-')}" for name in given}
    keys = {name: SHORT.get(flag, (flag,))[0][2:].replace("-", "_") for name, flag in flags.items()}
    found = {keys[name]: value for name, value in given.items() if value is not None}
    return {key: str(value) if isinstance(value, Path) else value for key, value in found.items()}


def _config(config: str | Path | ExperimentConfig) -> ExperimentConfig:
    if isinstance(config, ExperimentConfig):
        return config
    is_file = isinstance(config, Path) or (config not in RECIPES and Path(config).suffix in (".yaml", ".yml"))
    return read_config_file(Path(config)) if is_file else recipe(str(config))


def _changed(config: ExperimentConfig, keys: Mapping[str, Any]) -> ExperimentConfig:
    values = config.to_dict()
    for key, value in keys.items():
        group, _, name = key.rpartition(".")
        (values.setdefault(group, {}) if group else values)[name] = value
    return ExperimentConfig.from_dict(values)


def _with_own_backbone(config: ExperimentConfig, module: nn.Module, head: str) -> ExperimentConfig:
    """Returns the config of a run on a caller's module, whose weights are kept as a file in the output folder."""
    name, weights = register_backbone(module, head), config.model.weights
    if weights is None:
        state = OWN[name].module.state_dict()
        digest = PortableModel(NetworkDescription(backbone=name, num_classes=1, mean=(), std=()), state).digest()
        folder = output_home(config.run) / "backbones"
        folder.mkdir(parents=True, exist_ok=True)
        weights = str(folder / f"{name.rpartition('/')[2]}-{digest[:8]}.safetensors")
        save_weights(state, Path(weights))
    return replace(config, model=replace(config.model, backbone=name, weights=weights))
