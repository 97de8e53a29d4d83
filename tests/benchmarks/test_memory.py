"""The theory of a step's memory obeys its own laws, and what is measured comes near it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.memory import Flags, measure, show
from benchmarks.memory_account import Case, Step, Theory, drawn_task, saved_bytes
from distributed_autolora.config import Precision
from distributed_autolora.core.objectives import AutoLoRa
from distributed_autolora.models import build

CPU = torch.device("cpu")


def step_of(folder: Path, method: str, precision: Precision = "float32") -> Step:
    """Returns a step of 16 small images."""
    case = Case(backbone="small_resnet", method=method, size=8, channels=1, batch=16, precision=precision)
    return Step(case, str(folder), drawn_task(case, folder, CPU), CPU)


def test_parameters_gradients_and_momentum_are_four_bytes_a_number(tmp_path: Path) -> None:
    theory = step_of(tmp_path, "vanilla").theory(16)
    network = build("small_resnet", 10, mean=(0.5,), std=(0.25,))
    trained = 4 * sum(parameter.numel() for parameter in network.parameters())
    counters = 15 * 8  # one int64 in each batch norm
    buffers = 4 * (sum(2 * m.num_features for m in network.modules() if isinstance(m, nn.BatchNorm2d)) + 2) + counters
    assert theory.gradients == theory.momentum == trained
    assert theory.parameters == trained + buffers
    assert theory.images == 3 * 16 * 8 * 8 * 4


@pytest.mark.parametrize("method", ["autolora", "vanilla", "twins"])
def test_what_is_kept_for_the_backward_grows_linearly_with_the_batch(tmp_path: Path, method: str) -> None:
    step = step_of(tmp_path, method)
    four, eight, sixteen = (step.theory(batch) for batch in (4, 8, 16))
    assert sixteen.kept - eight.kept == 2 * (eight.kept - four.kept) > 0
    assert eight.at_batch(four, 8, 4, 16) == sixteen


def test_a_low_rank_branch_also_keeps_its_merged_weights_whatever_the_batch(tmp_path: Path) -> None:
    step = step_of(tmp_path, "autolora")
    constant = 2 * step.theory(8).kept - step.theory(16).kept
    objective = step.trainer.objective
    assert isinstance(objective, AutoLoRa)
    weights = [objective.backbone.get_parameter(f"{name}.weight") for name in objective.branch.factors()]
    merged = sum(weight.numel() for weight in weights)
    assert constant >= 4 * merged > 0


def test_tensors_that_share_a_storage_count_once_and_parameters_do_not() -> None:
    weight = torch.ones(10, requires_grad=True)
    image = torch.ones(10)
    assert saved_bytes(lambda: torch.sum(weight * image + weight * image.view(2, 5).view(10)), [weight]) == 40
    assert saved_bytes(lambda: torch.sum(weight * image.clone() + weight * image), [weight]) == 80
    assert saved_bytes(lambda: torch.sum(weight * weight), [weight]) == 0


def test_a_measured_step_holds_about_what_it_must(capsys: pytest.CaptureFixture[str]) -> None:
    result = measure(Flags(networks=("small_resnet",), methods=("vanilla",), precision="float32", batch=32))
    (case,) = result["cases"]
    theory = sum(case["theory"]["step"].values())
    assert Theory(**case["theory"]["step"]).total == theory
    assert 0.9 * theory < case["measured"]["step"] < 1.5 * theory
    assert case["measured"]["attack"] < case["measured"]["step"]
    show(result)
    assert f"{case['measured']['step'] / 2**20:.1f}" in capsys.readouterr().out
