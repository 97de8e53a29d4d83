"""The flags of the evaluation program."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distributed_autolora.config import RunConfig, output_home
from distributed_autolora.errors import UserError

_AT_LEAST_ONE = ("wait_for_resources_s", "chunk_size", "images", "image_size", "num_classes")


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """Evaluation of one model under one threat model by one or more attacks."""

    model: str
    """A run (folder or name), a .safetensors file of a run, a state dict, or models:/... or runs:/..."""
    data: str | None = None
    """Folder or URI with test*.parquet, or the name of the shipped task; None: the run's own."""
    attacks: str = "pgd10,autoattack"
    """Names separated by commas: fgsm, pgd10, pgd100, pgd10x5 (5 random starts), autoattack, apgd-ce, ..."""
    epsilon: float | None = None
    """Largest norm of a perturbation, of pixel values in [0, 1]; 8/255 is understood; None: the run's own."""
    norm: Literal["linf", "l2"] | None = None
    """Norm of the perturbation: linf: its largest value; l2: its Euclidean length; None: the run's own, or linf."""
    surrogate: str | None = None
    """For the attack transfer: the model whose adversarial images are evaluated here, or an adversarial.parquet."""
    save_adversarial: bool = False
    """Also write adversarial.parquet: of each image the adversarial image with the smallest margin."""
    corruptions: str | None = None
    """For the name corruptions: folder like CIFAR-10-C (NAME.npy, labels.npy); None: made by imagecorruptions."""
    images: int | None = None
    """Evaluate a stratified subset of this many test images; None: all."""
    image_size: int | None = None
    """Side that images are scaled and cut to, in pixels; None: the run's own, or as they are."""
    chunk_size: int = 100
    """Images in one batch, with a seed of its own."""
    seed: int = 0
    """Seed of the attacks and of the subset."""
    num_workers: int = 2
    """Worker processes; 0: this process, without Ray. No result depends on their number."""
    use_gpu: bool = False
    """One GPU for each worker."""
    wait_for_resources_s: float = 600.0
    """On a cluster: seconds to wait for the workers' CPUs and GPUs before giving up."""
    cache: str | None = None
    """Folder on each node for memory-mapped copies of large test splits; None: the system's temporary folder."""
    sanity: bool = True
    """Also check the attacks for gradient masking."""
    curve: bool = False
    """Also count the images that are robust to PGD-20 at 0 to 2 times epsilon."""
    export: bool = True
    """Also write the model, its card and its RobustBench entry as files."""
    register: str | None = None
    """Name in the MLflow model registry to register the model under."""
    output: str | None = None
    """Folder for the results; None: evaluation/ in the run's folder, or evaluations/NAME in the output folder."""
    backbone: str | None = None
    """Network of a state dict without a description, such as resnet18."""
    num_classes: int | None = None
    """Outputs of that network; None: the number of classes of the data."""
    mean: tuple[float, ...] | None = None
    """Per-channel mean that is subtracted from its images in [0, 1]; None: what the file states, else ImageNet's."""
    std: tuple[float, ...] | None = None
    """Per-channel standard deviation that they are divided by; None: as for the mean."""
    input_size: int | None = None
    """Side that its images are up-sampled to inside the model, in pixels; None: not at all."""
    mlflow_uri: str | None = None
    """MLflow tracking URI; None: the run's own, or SQLite in the output folder."""

    def validate(self) -> None:
        """Checks every range that can be checked without touching model or data.

        Raises:
            UserError: naming the first flag that is out of range.
        """
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}: it must be at least 1.")
        if self.num_workers < 0:
            raise UserError(f"--num-workers is {self.num_workers}: it must be at least 0.")
        if self.epsilon is not None and not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise UserError(f"--epsilon is {self.epsilon}: it must be above 0.")
        if len(self.mean or ()) != len(self.std or ()) or min(self.std or (1.0,)) <= 0:
            raise UserError("--mean and --std need one entry a channel each, and every std above 0.")

    def home(self) -> Path:
        """Returns the absolute output folder."""
        return output_home(RunConfig())
