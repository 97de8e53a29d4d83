"""A small problem and a small network that has learned it, for claims about attacks that need a margin to attack."""

import copy
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reference.networks import BASIC, build

NUM_CLASSES = 5


def images(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns noisy class templates in [0, 1], [rows, 3, 8, 8], and labels [rows]."""
    templates = torch.rand(NUM_CLASSES, 3, 8, 8, generator=torch.Generator().manual_seed(99)) - 0.5
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(NUM_CLASSES, (rows,), generator=generator)
    noise = torch.randn(rows, 3, 8, 8, generator=generator)
    return (0.5 + 0.4 * templates[y] + 0.15 * noise).clamp(0, 1), y


def learned_network() -> nn.Module:
    return copy.deepcopy(_learned_network())


@cache
def _learned_network() -> nn.Module:
    network = build(BASIC, seed=3, dtype=torch.float32)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for step in range(80):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 80)
        x, y = images(64, seed=step)
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((network(x).argmax(dim=1) == y).double().mean())
