"""What the adversary may do: threat models."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_HALF_CELL = 2.0**-25
"""Random numbers are multiples of 2^-24: their midpoints are symmetric about 1/2, and neither 0 nor 1."""
_NEWTON_STEPS = 4
_SHORTER = 1e-20
"""Than any direction with a largest entry of 1, or of a subnormal number over the smallest normal one."""


class Ball(Protocol):
    """The threat model around images: a ball of one norm, cut with the range of valid images.

    A new norm is one more class of this form in `BALLS`. No method may look at a value on the host: attacks are
    captured as CUDA graphs.

    Args:
        x: [n, ...] images inside the bounds.
    """

    def __init__(self, x: Tensor, epsilon: float, bounds: tuple[float, float]) -> None: ...

    def start(self, noise: Tensor) -> Tensor:
        """Returns the point of the ball that belongs to noise in [0, 1) shaped like `x`: uniform, then clamped."""
        ...

    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        """Returns new images after one step of steepest ascent in this norm; none where the gradient is zero."""
        ...

    def project_(self, x_adv: Tensor) -> Tensor:
        """Returns the nearest point of the threat model; `x_adv` may be overwritten."""
        ...

    @staticmethod
    def size(delta: Tensor) -> Tensor:
        """Returns the norm of each perturbation, [n]."""
        ...


class LinfBall:
    """No pixel value moves by more than epsilon."""

    def __init__(self, x: Tensor, epsilon: float, bounds: tuple[float, float]) -> None:
        self._x, self._epsilon, self._bounds = x, epsilon, bounds
        self._lowest, self._highest = (x - epsilon).clamp_(*bounds), (x + epsilon).clamp_(*bounds)

    def start(self, noise: Tensor) -> Tensor:
        return (self._x + self._epsilon * (2 * noise.to(self._x.dtype) - 1)).clamp_(*self._bounds)

    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        return x_adv.add(gradient.sign(), alpha=step_size)

    def project_(self, x_adv: Tensor) -> Tensor:
        return x_adv.clamp_(self._lowest, self._highest)

    @staticmethod
    def size(delta: Tensor) -> Tensor:
        return delta.abs().flatten(1).amax(1)


class L2Ball:
    """The Euclidean length of the perturbation of an image is at most epsilon."""

    def __init__(self, x: Tensor, epsilon: float, bounds: tuple[float, float]) -> None:
        self._x, self._epsilon, self._bounds = x, epsilon, bounds
        self._pixels = tuple(range(1, x.dim()))

    def start(self, noise: Tensor) -> Tensor:
        """Uniform in the ball: a normal vector has a uniform direction, and its length is independent of that.

        The chi-square distribution function of the squared length is the share of the ball's volume inside the radius.
        """
        normal: Tensor = torch.special.ndtri((noise.double() + _HALF_CELL).clamp_(max=1 - _HALF_CELL))
        squared, dimension = self._sum(normal.square()), math.prod(noise.shape[1:])
        share: Tensor = torch.special.gammainc(torch.full_like(squared, dimension / 2), squared / 2)
        delta = normal * (self._epsilon * share.pow(1 / dimension) / squared.sqrt())
        return (self._x + delta.to(self._x.dtype)).clamp_(*self._bounds)

    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        """A step along the gradient over its length; the squares of its largest entry neither vanish nor overflow."""
        tiny = torch.finfo(gradient.dtype).tiny
        direction = gradient / gradient.abs().amax(self._pixels, keepdim=True).clamp_min_(tiny)
        length = self._sum(direction.square()).sqrt_().clamp_min_(_SHORTER)
        return x_adv + direction * (step_size / length)

    def project_(self, x_adv: Tensor) -> Tensor:
        """The nearest point is x + s (x_adv - x), clamped, for the largest s in [0, 1] that stays in the ball.

        The squared length is concave and piecewise linear in s squared. Newton's method from the s that ignores the
        bounds therefore rises to the largest from below: it is inside after any number of steps, and the nearest point
        as soon as a step clamps no further pixel. After a step of PGD that takes one to three.
        """
        low, high = self._bounds
        delta = x_adv - self._x
        squared, tiny = delta.square(), torch.finfo(delta.dtype).tiny
        room = torch.where(delta > 0, high - self._x, self._x - low).clamp_min_(0).square_()
        scale = (self._epsilon**2 / self._sum(squared).clamp_min_(tiny)).clamp_(max=1)
        for _ in range(_NEWTON_STEPS):
            clamped = scale * squared >= room
            left = (self._epsilon**2 - self._sum(room * clamped)).clamp_min_(0)
            free = self._sum(squared * ~clamped).clamp_min_(tiny)
            scale = torch.maximum(scale, (left / free).clamp_(max=1))
        return delta.mul_(scale.sqrt_()).add_(self._x).clamp_(low, high)

    def _sum(self, values: Tensor) -> Tensor:
        return values.sum(self._pixels, keepdim=True)

    @staticmethod
    def size(delta: Tensor) -> Tensor:
        length: Tensor = delta.flatten(1).norm(dim=1)
        return length


BALLS: dict[str, type[Ball]] = {"linf": LinfBall, "l2": L2Ball}


@dataclass(frozen=True)
class ThreatModel:
    """The ball of radius `epsilon` around an image, cut with the range of valid images.

    Epsilon and the bounds, the least and largest valid pixel value, are in the units of the images.

    Raises:
        ValueError: for an unknown norm, a negative or non-finite epsilon, or empty bounds.
    """

    norm: str = "linf"
    epsilon: float = 8 / 255
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm not in BALLS:
            raise ValueError(f'norm is "{self.norm}": known are {", ".join(BALLS)}')
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise ValueError(f"epsilon is {self.epsilon}: it must be finite and not negative")
        if not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds are {self.bounds}: the first must be below the second")

    def around(self, x: Tensor) -> Ball:
        """Returns the threat model around images, for a search that asks for many projections."""
        return BALLS[self.norm](x, self.epsilon, self.bounds)

    def start(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """Returns a point around `x`: itself inside the bounds, or for noise in [0, 1) the matching uniform draw."""
        return x.clamp(*self.bounds) if noise is None else self.around(x).start(noise)

    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        """Returns `x_adv` after one step of steepest ascent in this norm."""
        return self.around(x_adv).ascend(x_adv, gradient, step_size)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Returns the point of the threat model around `x` nearest to `x_adv`."""
        return self.around(x).project_(x_adv.clone())

    def size(self, delta: Tensor) -> Tensor:
        """Returns the norm of each perturbation, [n]."""
        return BALLS[self.norm].size(delta)

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Returns for each image whether it is in the threat model around its `x`, up to rounding, [n]."""
        low, high = self.bounds
        rounding = torch.finfo(x.dtype).eps * (self.epsilon + 2 * max(map(abs, self.bounds)) * self.size(x[:1] * 0 + 1))
        inside = self.size(x_adv.double() - x.double()) <= self.epsilon + rounding.double()
        return inside & ((x_adv >= low) & (x_adv <= high)).flatten(1).all(1)
