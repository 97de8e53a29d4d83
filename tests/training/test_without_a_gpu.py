"""What a GPU would refuse, seen without one: a step stays on its device, mixes no number formats, and never waits.

PyTorch follows shapes, formats and devices of a forward on "cuda" with fake tensors. They have no values: an operation
that needs one, as `.item()` does, fails. Backward and optimiser run on the meta device, which has no values either.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from distributed_autolora.config import AttackConfig, ExperimentConfig, MethodConfig
from distributed_autolora.config.recipes import PAPER_METHODS, custom
from distributed_autolora.core.fast_attack.attack_network import AttackNetwork
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.models import Classifier, build
from distributed_autolora.training.attacks import FastAttack, build_attack
from distributed_autolora.training.distributed import batch_norm
from distributed_autolora.training.methods.registry import METHODS, method_of, set_weights

NETWORKS = {
    "small_resnet": PAPER_METHODS,
    "resnet18": PAPER_METHODS,
    "resnet50": PAPER_METHODS,
    "timm/vit_tiny_patch16_224": ("autolora", "vanilla"),
    "timm/convnext_atto": ("autolora", "vanilla"),
}
"""Backbones, and the methods that take them: TWINS needs batch norm."""
SIDE, BATCHES = 32, (64, 3, 1)
FORMATS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@pytest.fixture(scope="module", autouse=True)
def _statistics_of_a_batch_have_shapes() -> Iterator[None]:
    """Registers shapes for the one kernel of batch norm that PyTorch has none for."""
    library = torch.library.Library("aten", "IMPL", "Meta")
    library.impl("batch_norm_update_stats", _statistics)
    yield
    library._destroy()


def _statistics(x: Tensor, mean: Tensor | None, variance: Tensor | None, momentum: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[1], dtype=torch.float32), x.new_empty(x.shape[1], dtype=torch.float32)


def config_of(method: str) -> ExperimentConfig:
    return replace(custom(), method=MethodConfig(name=method))


def backbone_of(name: str) -> Classifier:
    return build(name, 10, input_size=SIDE if name.startswith("timm/") else None)


def objective_of(name: str, method: str) -> nn.Module:
    config = config_of(method)
    objective = METHODS[method].build(config, backbone_of(name)).train()
    set_weights(objective, config.method, 0.5)
    batch_norm.globalize_batch_norm(
        objective
    )  # as a trainer does; a batch of one row may be one pixel in the last layers
    return objective.to("meta")


def images(rows: int, device: str) -> tuple[Tensor, Tensor]:
    x = torch.rand(rows, 3, SIDE, SIDE, device=device)
    return x, torch.zeros(rows, dtype=torch.int64, device=device)


def put_on_a_gpu(module: nn.Module) -> None:
    """Replaces every tensor by one on "cuda"; to be called where tensors are fake."""
    for layer in module.modules():
        for name, value in layer._parameters.items():
            if value is not None:
                layer._parameters[name] = nn.Parameter(
                    torch.empty(value.shape, dtype=value.dtype, device="cuda"), value.requires_grad
                )
        for name, buffer in layer._buffers.items():
            layer._buffers[name] = (
                None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
            )


@contextmanager
def autocast_on_a_gpu(enabled: bool) -> Iterator[None]:
    """Turns bfloat16 autocast on where `torch.autocast` alone would turn it off, as there is no GPU."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", enabled)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


def loss_of(objective: nn.Module, method: str, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    further = method_of(config_of(method)).step_arguments(len(x), range(len(x)))
    total: Tensor = objective(x, x_adv, y, denominator=float(len(x)), **further).total
    return total


@pytest.mark.parametrize("name", NETWORKS)
def test_forwards_stay_on_a_gpu_and_need_no_value_of_a_tensor(name: str) -> None:
    objectives = {method: objective_of(name, method) for method in NETWORKS[name]}
    backbone = backbone_of(name).to("meta")  # not on the CPU, where convolutions would be oneDNN's
    networks = {text: AttackNetwork(backbone, dtype) for text, dtype in FORMATS.items()}
    with FakeTensorMode(), torch.no_grad():
        for module in (*objectives.values(), *networks.values()):
            put_on_a_gpu(module)
        for rows in BATCHES:
            x, y = images(rows, "cuda")
            for text, network in networks.items():
                logits, x_adv = network(x), x
                for norm in ("linf", "l2"):
                    ball = ThreatModel(norm, 8 / 255).around(x)
                    x_adv = ball.project_(ball.ascend(ball.start(torch.rand_like(x_adv)), x, 2 / 255))
                for value in (logits, x_adv):
                    assert (value.dtype, value.device) == (torch.float32, x.device)
                for method, objective in objectives.items():
                    with autocast_on_a_gpu(text == "bfloat16"):
                        total = loss_of(objective, method, x, x_adv, y)
                    assert (total.dtype, total.device) == (torch.float32, x.device)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_whole_step_needs_no_value_of_a_tensor(name: str) -> None:
    """Attack, both forwards, backward and optimiser on the meta device."""
    for method in NETWORKS[name]:
        config, objective = config_of(method), objective_of(name, method)
        optimizer = torch.optim.SGD(objective.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        backbone = objective.get_submodule("backbone")
        for text, dtype in FORMATS.items():
            attack = FastAttack(AttackNetwork(backbone, dtype), build_attack(config, AttackConfig(num_steps=1)))
            for rows in (64, 1) if text == "bfloat16" else (3,):
                x, y = images(rows, "meta")
                x_adv = attack(backbone, x, y, noise=torch.rand_like(x))
                assert (x_adv.dtype, x_adv.shape) == (torch.float32, x.shape)
                optimizer.zero_grad(set_to_none=True)
                loss_of(objective, method, x, x_adv, y).backward()
                optimizer.step()
        assert all(value.grad is not None for value in objective.parameters() if value.requires_grad)
