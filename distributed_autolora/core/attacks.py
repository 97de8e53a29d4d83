"""Attacks: loss + step + projection + start."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distributed_autolora.core.threat_model import ThreatModel

LOSSES = ("cross_entropy", "margin")
"""What an attack may maximise."""
_FAR = 100.0
_RANGE = 20.0
"""Of logits: exp(-20) is far from rounding to zero."""


@contextmanager
def eval_mode(model: nn.Module, kind: type[nn.Module] = nn.Module) -> Iterator[None]:
    """Puts every module of one kind in `model` in eval mode for the block, then restores the mode of each."""
    modes = [(module, module.training) for module in model.modules() if isinstance(module, kind)]
    for module, _ in modes:
        module.training = False  # not model.eval(), which an exported graph refuses
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def losses_by_row(logits: Tensor, y: Tensor, loss: str = "cross_entropy") -> Tensor:
    """Returns what an attack maximises for each row, [n].

    "margin" is the largest other logit minus the label's (Carlini and Wagner, 2017, without a floor). Its gradient does
    not fade however sure the network is, where that of the cross-entropy rounds to zero. There are at least 2 classes.

    Raises:
        ValueError: for a loss that is not in `LOSSES`.
    """
    _check_loss(loss)
    if loss == "cross_entropy":
        return F.cross_entropy(logits, y, reduction="none")
    own = y[:, None]
    return logits.scatter(1, own, -torch.inf).amax(1) - logits.gather(1, own)[:, 0]


def summed_loss(logits: Tensor, y: Tensor, loss: str = "cross_entropy") -> Tensor:
    """Returns the sum of `losses_by_row`, which keeps the gradient of a row independent of the others."""
    if loss == "cross_entropy":
        return F.cross_entropy(logits, y, reduction="sum")
    return losses_by_row(logits, y, loss).sum()


def input_gradient(model: nn.Module, x: Tensor, y: Tensor, *, loss: str = "cross_entropy") -> Tensor:
    """Returns the gradient of `summed_loss(model(x), y, loss)` with respect to the images only, shaped like `x`."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        total = summed_loss(model(x), y, loss)
    return torch.autograd.grad(total, x)[0]


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat_model: ThreatModel,
    num_steps: int,
    step_size: float,
    random_start: bool = True,
    noise: Tensor | None = None,
    loss: str = "cross_entropy",
) -> Tensor:
    """Returns the last iterate of projected gradient descent (paper, section 3.1: on the cross-entropy).

    Args:
        model: logits of images; attacked in eval mode, its own modes are kept.
        x: inside the threat model's bounds.
        step_size: length of a step in the threat model's norm, in the units of the images.
        random_start: start uniformly inside the threat model instead of at `x`.
        noise: shaped like `x`, in [0, 1), for the random start; None: drawn from torch's generator.

    Raises:
        ValueError: for a negative number or length of steps, noise of another shape, or an unknown loss.
    """
    _check_loss(loss)
    _check_search(x, num_steps, step_size, noise)
    x = x.detach()
    if random_start and noise is None:
        noise = torch.rand_like(x)
    x_adv = threat_model.start(x, noise if random_start else None)
    if len(x) == 0:
        return x_adv
    ball = threat_model.around(x)
    with eval_mode(model):
        for _ in range(num_steps):
            gradient = input_gradient(model, x_adv, y, loss=loss)
            x_adv = ball.project_(ball.ascend(x_adv, gradient, step_size))
    return x_adv.detach()


def halving_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat_model: ThreatModel,
    num_steps: int,
    noise: Tensor | None = None,
    loss: str = "cross_entropy",
) -> Tensor:
    """Returns the iterate with the largest loss of a search whose step starts at epsilon and halves.

    Large first steps leave a flat start, where small ones stay. The step halves where APGD may halve its own (Croce and
    Hein, 2020), for all images alike. Logits are scaled down where the cross-entropy would round to zero. It costs
    `num_steps` gradients; the arguments are those of `pgd`.
    """
    _check_loss(loss)
    _check_search(x, num_steps, 0, noise)
    x_adv = threat_model.start(x.detach(), torch.rand_like(x) if noise is None else noise)
    best, highest = x_adv, x_adv.new_full((len(x),), -torch.inf)
    ball, sizes = threat_model.around(x.detach()), _halving_sizes(threat_model.epsilon, num_steps)
    with eval_mode(model):
        for step_size in sizes if len(x) else ():
            point = x_adv.detach().requires_grad_()
            with torch.enable_grad():
                losses = losses_by_row(_unsaturated(model(point)), y, loss)
                gradient = torch.autograd.grad(losses.sum(), point)[0]
            improved = losses.detach() > highest
            highest = torch.where(improved, losses.detach(), highest)
            best = torch.where(improved.view(-1, *[1] * (x.dim() - 1)), x_adv, best)
            x_adv = ball.project_(ball.ascend(x_adv, gradient, step_size))
    return best.detach()


def _unsaturated(logits: Tensor) -> Tensor:
    """Returns each row divided by a constant that brings its range down to `_RANGE`; rows within it stay."""
    span = logits.detach().amax(1, keepdim=True) - logits.detach().amin(1, keepdim=True)
    return logits / (span / _RANGE).clamp_min(1)


def _halving_sizes(largest: float, num_steps: int) -> list[float]:
    """Returns the length of each step: it halves at APGD's checkpoints, after 22, 41, 57, ... % of the steps."""
    place, gap, halvings = 0.22, 0.22, []
    while place < 1:
        halvings.append(math.ceil(round(place * num_steps, 6)))
        gap = max(gap - 0.03, 0.06)
        place += gap
    return [largest * 0.5 ** sum(step >= halving for halving in halvings) for step in range(num_steps)]


def first_order_stationarity(x: Tensor, x_adv: Tensor, gradient: Tensor, threat_model: ThreatModel) -> Tensor:
    """Returns by how much the loss could still rise to first order within the threat model, [n], 0 or more.

    FOSC(x_adv) = max <x' - x_adv, gradient> over all x' of the threat model around `x` (Wang et al., 2019):
    0 at a maximum inside it and where every pixel is at its best end; large where an attack stopped early. Away from
    the range of valid pixels it is epsilon * |gradient|_1 - <x_adv - x, gradient>, in L2 with |gradient|_2.

    Args:
        x_adv: inside the threat model around `x`.
        gradient: of the attack's loss of each image at `x_adv`, shaped like `x`.
    """
    ball = threat_model.around(x)
    # A step much longer than the ball is wide, projected: in L2 pixels with a small gradient also reach their share.
    farthest = ball.project_(ball.ascend(x, gradient, _FAR * threat_model.epsilon))
    return ((farthest - x_adv) * gradient).flatten(1).sum(1).clamp_min(0)


def fgsm(model: nn.Module, x: Tensor, y: Tensor, *, threat_model: ThreatModel) -> Tensor:
    """Returns the result of the fast gradient (sign) attack: one step of length epsilon from the clean image."""
    return pgd(model, x, y, threat_model=threat_model, num_steps=1, step_size=threat_model.epsilon, random_start=False)


def _check_loss(loss: str) -> None:
    if loss not in LOSSES:
        raise ValueError(f'loss is "{loss}": it must be one of {LOSSES}')


def _check_search(x: Tensor, num_steps: int, step_size: float, noise: Tensor | None) -> None:
    if num_steps < 0 or step_size < 0:
        raise ValueError(f"num_steps is {num_steps} and step_size {step_size}: neither may be negative")
    if noise is not None and noise.shape != x.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}, the images {tuple(x.shape)}")
