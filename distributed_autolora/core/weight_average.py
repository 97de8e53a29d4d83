"""A moving average of a network's weights (Polyak and Juditsky, 1992; exponential, as mean teachers have it)."""

import copy
import math
from typing import Self

import torch
from torch import Tensor, nn


class WeightAverage(nn.Module):
    """A copy of `network` that holds the exponential moving average of its parameters and floating-point buffers.

    An update moves every value by 1 - decay towards the network's, decay = min(exp(-1 / memory), (1 + t) / (10 + t))
    after t updates, so that an average of little more than its start does not linger. Other buffers, such as counters,
    are copied. The copy is not trained, and stays in eval mode.

    Args:
        memory: number of updates after which a value's share has fallen to 1 / e, above 0.

    Raises:
        ValueError: for a memory that is not above 0.
    """

    updates: Tensor

    def __init__(self, network: nn.Module, memory: float) -> None:
        super().__init__()
        if memory <= 0:
            raise ValueError(f"memory is {memory}: it must be above 0")
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.longest_decay = math.exp(-1 / memory)
        device = next(network.parameters()).device
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=device))

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Moves the average towards the weights that `network`, of the same structure, has now."""
        # On the device, where reading the number of updates would wait for the step.
        updates = self.updates.double()
        share = 1 - ((1 + updates) / (10 + updates)).clamp_max(self.longest_decay)
        now = _tensors_of(network)
        for name, average in _tensors_of(self.network).items():
            if average.is_floating_point():
                average.lerp_(now[name], share.to(average.dtype))
            else:
                average.copy_(now[name])
        self.updates += 1

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits of the averaged network, without gradient."""
        logits: Tensor = self.network(x)
        return logits

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: its batch norms normalise with averaged statistics."""
        return super().train(False)


def _tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Returns parameters and buffers by name; one that two layers share is there once."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
