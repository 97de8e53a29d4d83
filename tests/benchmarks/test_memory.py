"""The theory of a step's memory obeys its own laws, and what is measured comes near it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.memory import Flags, config_of, measure, theory
from benchmarks.trained import TrainingSteps
from distributed_autolora.core.objectives import AutoLoRa
from distributed_autolora.models import build
from distributed_autolora.training.memory_estimate import kept_bytes
from distributed_autolora.training.task_data import TaskData
from tests.training.tasks import SIZE, write_task

CPU = torch.device("cpu")


class Steps:
    """A trainer and sixteen small images."""

    def __init__(self, folder: Path, method: str) -> None:
        config = config_of("small_resnet", method, 16, "float32", write_task(folder, 20))
        data = TaskData(config, str(folder), CPU)
        self.x, self.y = data.plain_batch(data.split.train[:16])
        self.steps = TrainingSteps(config, data, None, CPU)

    def theory(self, batch: int) -> dict[str, int]:
        return theory(self.steps, self.x[:batch], self.y[:batch])


def test_parameters_gradients_and_momentum_are_four_bytes_a_number(tmp_path: Path) -> None:
    found = Steps(tmp_path, "vanilla").theory(16)
    network = build("small_resnet", 3, mean=(0.5,), std=(0.25,))
    trained = 4 * sum(parameter.numel() for parameter in network.parameters())
    counters = 15 * 8  # one int64 in each batch norm
    buffers = 4 * (sum(2 * m.num_features for m in network.modules() if isinstance(m, nn.BatchNorm2d)) + 2) + counters
    assert found["gradients"] == found["momentum"] == trained
    assert found["parameters"] == trained + buffers
    assert found["images"] == 3 * 16 * SIZE * SIZE * 4


@pytest.mark.parametrize("method", ["autolora", "vanilla", "twins"])
def test_what_is_kept_for_the_backward_grows_linearly_with_the_batch(tmp_path: Path, method: str) -> None:
    steps = Steps(tmp_path, method)
    four, eight, sixteen = (steps.theory(batch) for batch in (4, 8, 16))
    assert sixteen["kept"] - eight["kept"] == 2 * (eight["kept"] - four["kept"]) > 0


def test_a_low_rank_branch_also_keeps_its_merged_weights_for_any_batch(tmp_path: Path) -> None:
    steps = Steps(tmp_path, "autolora")
    constant = 2 * steps.theory(8)["kept"] - steps.theory(16)["kept"]
    objective = steps.steps.trainer.objective
    assert isinstance(objective, AutoLoRa)
    weights = [objective.backbone.get_parameter(f"{name}.weight") for name in objective.branch.factors()]
    merged = sum(weight.numel() for weight in weights)
    assert constant >= 4 * merged > 0


def test_tensors_that_share_a_storage_count_once_and_parameters_do_not() -> None:
    weight = torch.ones(10, requires_grad=True)
    image = torch.ones(10)
    assert kept_bytes(lambda: torch.sum(weight * image + weight * image.view(2, 5).view(10)), [weight]) == 40
    assert kept_bytes(lambda: torch.sum(weight * image.clone() + weight * image), [weight]) == 80
    assert kept_bytes(lambda: torch.sum(weight * weight), [weight]) == 0


def test_a_measured_step_holds_about_what_it_must() -> None:
    result = measure(Flags(networks=("small_resnet",), methods=("vanilla",), precision="float32", batch=32))
    step = result["networks"]["small_resnet"]["steps"]["vanilla"]
    total = sum(step["theory"].values())
    assert 0.9 * total < step["measured"] < 1.5 * total
