"""Batch norm over several workers: with the activation of timm, and for a batch of one image."""

from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from distributed_autolora.core.fast_attack.attack_network import AttackNetwork
from distributed_autolora.training.distributed import batch_norm, collectives
from tests.training.gloo import run_workers

ROWS = 7


def network() -> nn.Sequential:
    torch.manual_seed(0)
    norm = BatchNormAct2d(4, act_layer=nn.SiLU)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.Linear(36, 2)).double()


def images() -> Tensor:
    return torch.rand(ROWS, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def measured(model: nn.Sequential, rows: Tensor) -> dict[str, Tensor]:
    """Returns what the batch norm and the whole network give for rows in train and in eval mode, and the gradients."""
    x = images()[rows]
    found = {"norm": model[:2](x)}
    model(x).square().sum().backward()
    found |= {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    found |= dict(model.named_buffers())
    found["eval"] = model.eval()(x)
    attack_network = AttackNetwork(model)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in attack_network.modules())
    found["attacked"] = attack_network(x)
    return {name: value.detach() for name, value in found.items()}


def on_a_worker() -> dict[str, Tensor]:
    model = network()
    names = list(model.state_dict())
    batch_norm.globalize_batch_norm(model)
    assert isinstance(model[1], batch_norm.GlobalBatchNorm)
    assert list(model.state_dict()) == names
    return measured(model, torch.arange(ROWS)[collectives.rank() :: 2])


def test_two_workers_activate_as_one_does() -> None:
    one, workers = measured(network(), torch.arange(ROWS)), run_workers(on_a_worker, 2)
    assert one["norm"].min() > -0.3, "SiLU is never below -0.28, batch norm is"
    for name, expected in one.items():
        if name.startswith("gradient"):
            # Parameters see their own worker's rows; DistributedDataParallel adds these up.
            torch.testing.assert_close(workers[0][name] + workers[1][name], expected, msg=name)
            continue
        for worker, found in enumerate(workers):
            rows = expected[worker::2] if len(expected.shape) > 1 else expected
            torch.testing.assert_close(found[name], rows, msg=f"{name} of worker {worker}")


def on_one_row() -> dict[str, Any]:
    """Takes one row to the first worker, none to the others; returns what the network makes of it."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm).double()
    batch_norm.globalize_batch_norm(model)
    x = torch.rand(1, 3, 3, 3, dtype=torch.float64)[: 1 if collectives.rank() == 0 else 0]
    out = model(x)
    out.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {
        "out": out.detach(),
        "bias": norm.bias.detach(),
        "gradients": gradients,
        "buffers": dict(model.named_buffers()),
    }


def test_one_row_of_one_pixel_trains_on_one_worker_as_on_two() -> None:
    alone, workers = on_one_row(), run_workers(on_one_row, 2)
    torch.testing.assert_close(alone["out"][0, :, 0, 0], alone["bias"], msg="the row is its own mean")
    assert alone["buffers"]["1.running_var"].tolist() == [0.9] * 4
    torch.testing.assert_close(workers[0]["out"], alone["out"])
    for worker in workers:
        torch.testing.assert_close(worker["buffers"], alone["buffers"])
    for name, gradient in alone["gradients"].items():
        torch.testing.assert_close(sum(worker["gradients"][name] for worker in workers), gradient, msg=name)
