"""A batch may be one image, as the last of an epoch, however few pixels are left of it behind the convolutions."""

from typing import Any

import torch
from torch import nn

from distributed_autolora.training.distributed import batch_norm, collectives
from tests.training.gloo import run_workers


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
