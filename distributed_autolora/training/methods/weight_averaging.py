"""A moving average of the trained weights: as the deployed network, as the teacher of the soft labels, or both."""

from torch import Tensor, nn

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.core.weight_average import WeightAverage
from distributed_autolora.models import Classifier


def has_teacher(config: ExperimentConfig) -> bool:
    """Tells whether the soft labels of the KL term come from the averaged network."""
    return config.method.weight_average in ("teacher", "both")


class Averaging:
    """Keeps the average that a config asks for inside the objective, and so in every checkpoint and the best state.

    Workers compute it alike from equal weights: no collective runs.

    It remembers about one epoch. `deployed` is the network that is validated, selected, evaluated and saved.
    """

    def __init__(self, config: ExperimentConfig, objective: nn.Module, backbone: Classifier, train_images: int) -> None:
        self.deployed, self._backbone = backbone, backbone
        self._average: WeightAverage | None = None
        self._has_teacher = has_teacher(config)
        if config.method.weight_average == "none":
            return
        steps = -(-train_images // config.optimization.global_batch_size)
        self._average = WeightAverage(backbone, memory=steps)
        objective.add_module("average", self._average)
        if config.method.weight_average in ("deployed", "both"):
            assert isinstance(self._average.network, Classifier)
            self.deployed = self._average.network

    def teacher_arguments(self, x: Tensor) -> dict[str, Tensor]:
        """Returns the objective's keyword arguments for natural images [n, C, H, W]: the teacher's logits, if any."""
        return {"teacher_logits": self._average(x)} if self._average is not None and self._has_teacher else {}

    def update(self) -> None:
        """Moves the average, if there is one, towards the backbone; after every step of the optimiser."""
        if self._average is not None:
            self._average.update(self._backbone)
