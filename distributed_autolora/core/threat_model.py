"""What the adversary may do: threat models."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ThreatModel:
    """The L-infinity ball of radius `epsilon` around an image, cut with the range of valid images.

    Epsilon and the bounds, the least and largest valid pixel value, are in the units of the images.

    Raises:
        ValueError: for another norm, a negative or non-finite epsilon, or empty bounds.
    """

    norm: str = "linf"
    epsilon: float = 8 / 255
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm != "linf":
            raise ValueError(f'norm is "{self.norm}": only "linf" is known')
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise ValueError(f"epsilon is {self.epsilon}: it must be finite and not negative")
        if not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds are {self.bounds}: the first must be below the second")

    def start(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """Returns a point around `x`: itself inside the bounds, or for noise in [0, 1) the matching uniform draw."""
        if noise is None:
            return x.clamp(*self.bounds)
        return (x + self.epsilon * (2 * noise.to(x.dtype) - 1)).clamp_(*self.bounds)

    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        """Returns `x_adv` after one step of steepest ascent in this norm."""
        return x_adv.add(gradient.sign(), alpha=step_size)

    def box(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the least and the largest value that each pixel around `x` may have, both shaped like `x`."""
        return (x - self.epsilon).clamp_(*self.bounds), (x + self.epsilon).clamp_(*self.bounds)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Returns the point of the threat model around `x` nearest to `x_adv`."""
        return x_adv.clamp(*self.box(x))
