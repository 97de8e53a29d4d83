"""Preserved state of model, random numbers and tracer; full float32 precision; and checks of what is evaluated."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from distributed_autolora.core.attacks import eval_mode
from distributed_autolora.core.fast_attack.tf32 import allow_tf32
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.errors import UserError


@contextmanager
def prepared(
    model: nn.Module, x: Tensor, y: Tensor, threat_model: ThreatModel, batch_size: int | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields images and labels on the model's device, and the logits of the first `batch_size` images or of all.

    Gradients are off, and `preserve_state` holds. n may be 0.

    Raises:
        ValueError: for images that are not float32 [n, C, H, W], labels of another length, or bounds other than [0, 1].
        UserError: for images outside [0, 1], or a model that cannot be evaluated.
    """
    _check_inputs(model, x, y, threat_model)
    with preserve_state(model) as device, torch.no_grad():
        x, y = x.to(device), y.to(device).long()
        if not len(x):
            yield x, y, x.new_zeros(0, 2)
            return
        _check_differentiable(model, x)
        logits = model(x[:batch_size])
        _check_logits(logits, y[:batch_size])
        yield x, y, logits


@contextmanager
def preserve_state(model: nn.Module) -> Iterator[torch.device]:
    """Yields the model's device; in the block the model is in eval mode and computes in full float32.

    Restored afterwards: the modules' modes, `requires_grad` and `.grad` of parameters, torch's global random numbers,
    the interpreter's trace function (coverage, debuggers), the precision settings. In the block parameters need no
    gradient: attacks follow input gradients only, and FAB would leave others behind.
    """
    device = model_device(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trace = sys.gettrace()
    cuda = [device] if device.type == "cuda" else []
    with eval_mode(model), torch.random.fork_rng(devices=cuda), _full_precision(device):
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            yield device
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)
            sys.settrace(trace)


def model_device(model: nn.Module) -> torch.device:
    """Returns the device of the model's first parameter or buffer; the CPU for a model without any."""
    first = next(iter([*model.parameters(), *model.buffers()]), None)
    return torch.device("cpu") if first is None else first.device


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Turns TF32 and autocast off for the block, and makes cuDNN use deterministic kernels."""
    cudnn: Any = torch.backends.cudnn
    kernels = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        with allow_tf32(False), torch.autocast(device.type, enabled=False):
            yield
    finally:
        cudnn.benchmark, cudnn.deterministic = kernels


def _check_inputs(model: nn.Module, x: Tensor, y: Tensor, threat_model: ThreatModel) -> None:
    """Refuses what an attack would accept silently, with a wrong result."""
    if x.dtype != torch.float32 or x.dim() != 4 or len(x) != len(y):
        raise ValueError(f"images are {x.dtype} {tuple(x.shape)}, labels {tuple(y.shape)}: float32 [n, C, H, W], [n]")
    if threat_model.bounds != (0.0, 1.0):
        raise ValueError(f"bounds are {threat_model.bounds}: evaluation knows images in [0, 1] only")
    other = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if other:
        raise UserError(f"Evaluation: the model has {other.pop()} parameters: evaluate it in float32 (model.float()).")
    if len(x) and not bool(((x >= 0) & (x <= 1)).all()):
        raise UserError(
            f"Evaluation: images range from {float(x.min()):.4g} to {float(x.max()):.4g}: give images in [0, 1] and "
            "normalise inside the model."
        )


def _check_logits(logits: Tensor, y: Tensor) -> None:
    if logits.dim() != 2:
        raise UserError(f"Evaluation: the model returns {tuple(logits.shape)}: it must return logits [n, classes].")
    broken = int((~logits.isfinite().all(1)).sum())
    if broken:
        raise UserError(
            f"Evaluation: the logits of {broken} of {len(y)} natural images are not finite: give weights from before "
            "training diverged, and images in the range that the model was trained on."
        )
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
        raise UserError(
            f"Evaluation: labels go from {int(y.min())} to {int(y.max())} but the model has {logits.shape[1]} outputs: "
            "give the model that was trained for this data."
        )


def _check_differentiable(model: nn.Module, x: Tensor) -> None:
    with torch.enable_grad():
        connected = model(x[:1].detach().clone().requires_grad_()).requires_grad
    if not connected:
        raise UserError(
            "Evaluation: the model's logits carry no gradient to its input (an integer cast, detach or no_grad?): "
            "attacks need a differentiable form of it."
        )
