"""Measures the attack: PGD against plain `.backward()`, against other ways to run it, and against its floor.

    python benchmarks/attack.py                         # three networks on the CPU, about three minutes
    python benchmarks/attack.py --networks resnet18@224 --rows 8

The floor is the forward and the input gradient of the network's convolutions alone, in the fastest number format and
layout. torchattacks is measured too if it is installed.
"""

import copy
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout has no package "benchmarks"

from benchmarks.reference import plain_pgd
from benchmarks.timing import BenchmarkFlags, interleaved, ratio, run_benchmark, table
from distributed_autolora.core.attacks import pgd
from distributed_autolora.core.fast_attack.attack_network import AttackNetwork
from distributed_autolora.core.fast_attack.fused_convolution import FusedConvolution
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.models import build

FLOOR, PLAIN, OURS = "floor: convolutions alone", "plain .backward()", "attack network, bfloat16"
EPSILON = 8 / 255


@dataclass(frozen=True, kw_only=True)
class Flags(BenchmarkFlags):
    """What to measure."""

    networks: tuple[str, ...] = ("small_resnet@28", "resnet18@32", "resnet18@224")
    """Backbone and side of its images in pixels."""
    rows: tuple[int, ...] = (64, 32, 4)
    """Images of a batch, for each network; the last number is repeated."""
    steps: int = 3
    """PGD steps of a measured attack."""
    rounds: int = 9
    """Times that each variant is timed."""


def measure(flags: Flags) -> dict[str, Any]:
    """Returns everything that is written."""
    rows = [*flags.rows, *[flags.rows[-1]] * len(flags.networks)]
    torch.manual_seed(0)
    return {
        "networks": {
            network: measure_network(network, batch, flags.steps, flags.rounds)
            for network, batch in zip(flags.networks, rows, strict=False)
        }
    }


def measure_network(network: str, rows: int, steps: int, rounds: int) -> dict[str, Any]:
    """Returns milliseconds of one PGD step and ratios by variant."""
    backbone, _, side = network.partition("@")
    channels = 1 if backbone == "small_resnet" else 3
    model = build(backbone, 10, mean=(0.5,) * channels, std=(0.25,) * channels)
    # A fresh residual network's logits are far apart, and its gradients vanish.
    with torch.no_grad():
        model.head.weight.mul_(0.1)
    model.eval()
    x, y = torch.rand(rows, channels, int(side), int(side)), torch.randint(0, 10, (rows,))
    variants = variants_of(model, x, y, steps)
    seconds = interleaved(variants, rounds)
    return {
        "rows": rows,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "variants": {
            name: {
                "ms": 1000 * min(taken) / steps,
                "images_x_steps_per_second": rows * steps / min(taken),
                "times_the_floor": ratio(seconds, name, FLOOR),
                "speed_over_plain": 1 / ratio(seconds, name, PLAIN),
            }
            for name, taken in seconds.items()
        },
    }


def variants_of(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> dict[str, Callable[[], Tensor | None]]:
    """Returns every way to run the attack, by name."""
    size = {"num_steps": steps, "step_size": EPSILON / 4}
    threat_model = ThreatModel(epsilon=EPSILON)

    def attack(network: nn.Module) -> Callable[[], Tensor]:
        return lambda: pgd(network, x, y, threat_model=threat_model, random_start=False, **size)  # type: ignore[arg-type]

    variants: dict[str, Callable[[], Tensor | None]] = {
        PLAIN: lambda: plain_pgd(model, x, y, epsilon=EPSILON, noise=None, **size)  # type: ignore[arg-type]
    }
    if importlib.util.find_spec("torchattacks"):
        import torchattacks

        other = torchattacks.PGD(model, eps=EPSILON, alpha=EPSILON / 4, steps=steps, random_start=False)
        variants["torchattacks.PGD"] = lambda: other(x, y)
    variants["autograd.grad"] = attack(model)
    for dtype in (torch.float32, torch.bfloat16):
        for channels_last in (False, True):
            name = f"autograd.grad, {str(dtype)[6:]}{', channels-last' * channels_last}"
            if (dtype, channels_last) != (torch.float32, False):
                variants[name] = attack(_Converted(model, dtype, channels_last))
    variants["attack network, float32"] = attack(AttackNetwork(model, torch.float32))
    fast = AttackNetwork(model, torch.bfloat16)
    variants[OURS] = attack(fast)
    variants[FLOOR] = floor(fast, x, steps)
    return variants


class _Converted(nn.Module):
    """The whole model in another number format and layout, batch norms not folded."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, channels_last: bool) -> None:
        super().__init__()
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.dtype = dtype
        self.model = copy.deepcopy(model).to(dtype=dtype).to(memory_format=self.format)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.to(self.dtype, memory_format=self.format))
        return logits.float()


def floor(network: nn.Module, x: Tensor, steps: int) -> Callable[[], None]:
    """Returns the forward and input gradient of every convolution of an attack network, one after the other."""
    seen: list[tuple[Any, Tensor, Tensor]] = []

    def remember(layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        seen.append((layer, inputs[0].detach().clone(), out.detach().clone()))

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | FusedConvolution)]
    hooks = [layer.register_forward_hook(remember) for layer in layers]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()

    @torch.no_grad()
    def run() -> None:
        for _ in range(steps):
            for layer, images, _ in seen:
                F.conv2d(images, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
            for layer, images, out in reversed(seen):
                shape = (layer.stride, layer.padding, layer.dilation, False, [0, 0], layer.groups)
                torch.ops.aten.convolution_backward(out, images, layer.weight, None, *shape, [True, False, False])

    return run


def show(result: dict[str, Any]) -> None:
    """Prints a table a network."""
    for network, found in result["networks"].items():
        print(f"\n{network}, {found['parameters'] / 1e6:.2f} M parameters, batch of {found['rows']}, one thread")
        print(table("one PGD step", found["variants"]))


if __name__ == "__main__":
    run_benchmark(Flags, __doc__, measure, show)
