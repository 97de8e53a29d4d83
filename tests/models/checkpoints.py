"""Writes checkpoints as the programs do that published them, from the layouts' descriptions alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.file), "w"))


def column(values: tuple[float, ...]) -> Tensor:
    """Returns one value a channel as [channels, 1, 1]."""
    return torch.tensor(values).view(-1, 1, 1)


def attacker_state(network: nn.Module, normalisation: tuple[tuple[float, ...], ...] = IMAGENET) -> State:
    """Returns what DataParallel over MadryLab's AttackerModel holds: everything twice."""
    mean, std = (column(values) for values in normalisation)
    state: State = {"module.normalizer.new_mean": mean, "module.normalizer.new_std": std}
    state |= {"module.attacker.normalize.new_mean": mean, "module.attacker.normalize.new_std": std}
    for name, value in network.state_dict().items():
        state[f"module.model.{name}"] = value
        state[f"module.attacker.model.{name}"] = value
    return state


def write_robust_imagenet(
    path: Path,
    network: nn.Module,
    *,
    key: str = "model",
    change: Callable[[State], None] = lambda _: None,
    **further: Any,
) -> Path:
    """Writes a checkpoint of robust ImageNet training: weights, optimiser, schedule, epoch, accuracy."""
    state = attacker_state(network)
    change(state)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=0.1, momentum=0.9).state_dict()
    torch.save(
        {key: state, "optimizer": optimizer, "schedule": None, "epoch": 89, "amp": None, "nat_prec1": 63.5} | further,
        path,
    )
    return path
