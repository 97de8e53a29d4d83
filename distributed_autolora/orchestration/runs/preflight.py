"""Looks at everything a run needs before it starts, and writes down what it found."""

from dataclasses import dataclass, replace
from importlib.util import find_spec

from distributed_autolora.config import ExperimentConfig, output_home
from distributed_autolora.data.catalog import EMBEDDED_BACKBONES, data_folder, embedded_backbone, labelled_task
from distributed_autolora.data.parquet.digest import data_digest
from distributed_autolora.data.parquet.locations import absolute_location
from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.runs.checked_data import CHECKED_DATA, check_data

_FEW_VALIDATION_IMAGES = 100
_FEW_IMAGES_A_GPU = 32


@dataclass(frozen=True)
class Inputs:
    """Where a run's data and weights are on this machine."""

    data_folder: str
    weights: str | None


def find_inputs(config: ExperimentConfig) -> tuple[ExperimentConfig, Inputs]:
    """Finds method, data and weights, and returns the config with the digests of data and weights filled in.

    Raises:
        UserError: when they are missing, or are not those that the config names by digest.
    """
    from distributed_autolora.models import weights_digest
    from distributed_autolora.training.methods.registry import method_of

    config.validate()
    if config.run.system_metrics:
        check_system_metrics(config.scaling.use_gpu)
    method_of(config)
    folder, weights = data_folder(config.data), weights_location(config)
    data = data_digest(folder, output_home(config.run) / CHECKED_DATA)
    if config.data.digest not in (None, data):
        raise UserError(
            f"The data at {folder} are not those of the config (digest {data[:12]}, not {str(config.data.digest)[:12]})"
            ". Give the original path, or remove the digest from the config."
        )
    model = weights_digest(weights, config.model.weights_digest) if weights else None
    # Absolute paths, so that the config can be fed back from any folder.
    path = None if config.data.path is None else folder
    kept = config.model.weights if config.model.weights in EMBEDDED_BACKBONES else weights
    config = replace(
        config,
        data=replace(config.data, digest=data, path=path, task=labelled_task(config.data.task, folder)),
        model=replace(config.model, weights_digest=model, weights=kept),
    )
    return config, Inputs(folder, weights)


def check_system_metrics(use_gpu: bool) -> None:
    """Looks for the packages that system metrics are measured by.

    Raises:
        UserError: naming those that are missing.
    """
    import ray  # noqa: F401  its wheels bring psutil

    needed = {"psutil": "psutil", "pynvml": "nvidia-ml-py"} if use_gpu else {"psutil": "psutil"}
    if missing := [package for module, package in needed.items() if find_spec(module) is None]:
        raise UserError(
            f"--system-metrics needs {' and '.join(missing)}: pip install 'distributed-autolora[system-metrics]', or "
            "leave it out."
        )


def weights_location(config: ExperimentConfig) -> str | None:
    """Returns the absolute path, or the URI, of the config's pre-trained weights; None: it has none."""
    weights = config.model.weights
    if weights is None:
        return None
    return absolute_location(str(embedded_backbone(weights)) if weights in EMBEDDED_BACKBONES else weights)


def check_inputs(config: ExperimentConfig, inputs: Inputs) -> list[str]:
    """Opens all data, decodes every image, builds the model and its objective, and splits; returns warnings.

    A run that never opens the test split does not have it looked into here either.

    Raises:
        UserError: for anything that would end the run later.
    """
    from distributed_autolora.data.images import check_image_settings
    from distributed_autolora.models import check_takes_images
    from distributed_autolora.training.methods.registry import build_objective, fresh_classifier

    model, data = config.model, config.data
    resized = data.augmentation == "resized_crop_flip"
    check_image_settings(channels=len(model.mean), image_size=data.image_size, resized=resized)
    found = check_data(config, inputs.data_folder, output_home(config.run) / CHECKED_DATA)
    classifier = fresh_classifier(config, found.classes, inputs.weights)
    check_takes_images(classifier, found.size if data.image_size is None else (data.image_size, data.image_size))
    build_objective(config, classifier)
    return [*found.warnings, *_warnings(config, found.train, found.val)]


def _warnings(config: ExperimentConfig, train_images: int, val_images: int) -> list[str]:
    warnings = []
    if val_images < _FEW_VALIDATION_IMAGES:
        warnings.append(
            f"only {val_images} validation images: the learning rate and the choice of the epoch follow their "
            "robust accuracy, and with so few they follow noise. Give more training images, or a larger "
            "--data.val-fraction."
        )
    for name, attack in (("train_attack", config.train_attack), ("eval_attack", config.eval_attack)):
        if attack.step_size > config.threat_model.epsilon:
            warnings.append(
                f"{name}.step_size {attack.step_size:g} is larger than epsilon {config.threat_model.epsilon:g}: "
                "every step is cut back to the border of the threat model."
            )
        if 0 < attack.num_steps * attack.step_size < config.threat_model.epsilon:
            warnings.append(
                f"{name}.num_steps times step_size is {attack.num_steps * attack.step_size:g}, less than epsilon "
                f"{config.threat_model.epsilon:g}: the attack cannot reach the border of the threat model. Give "
                f"--{name.replace('_', '-')}.step-size {config.threat_model.epsilon / 4:g}."
            )
    if train_images < config.optimization.global_batch_size:
        warnings.append(
            f"the {train_images} training images are fewer than one global batch "
            f"({config.optimization.global_batch_size}): every epoch is a single step."
        )
    workers, batch = config.scaling.num_workers, config.optimization.global_batch_size
    if config.scaling.use_gpu and workers > 1 and batch < workers * _FEW_IMAGES_A_GPU:
        warnings.append(
            f"{workers} GPUs share every batch of {batch} images, {batch / workers:g} each, and wait for each other in "
            "every batch norm. Runs side by side use them better: --workers 1 for each seed, or "
            "jobs/compare.py, which fills the cluster with runs."
        )
    if (shards := config.optimization.batch_norm_shards) and config.scaling.max_workers is None and shards % workers:
        most = -(-shards // workers)
        warnings.append(f"{workers} workers share {shards} shards unevenly: a step waits for a worker with {most}.")
    if config.model.weights is None and config.method.name == "autolora":
        warnings.append("model.weights is not given: this fine-tunes a random network.")
    return warnings
