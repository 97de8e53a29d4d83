"""Sanity checks of the model itself: input range, determinism, batch independence, gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distributed_autolora.core.attacks import input_gradient
from distributed_autolora.evaluation.sanity.rules import Subject, percent, slack, status_of, worst
from distributed_autolora.evaluation.trajectories import recorded_logits
from distributed_autolora.records import SanityCheck, Status

_ROUNDING = 1e-4
_NOISE_DRAWS = 4
_NOISE_LIMITS = (0.05, 0.15)
_ZERO_IMAGE_LIMITS = (0.01, 0.1)
_ZERO_PIXEL_LIMIT = 0.1
_ALONE = 8


def inputs(subject: Subject) -> SanityCheck:
    """Images in [0, 1], normalisation inside: no other scale of the images suits the model better.

    Compared are the accuracies on images in [0, 1], on images times 255, and on images normalised by their own
    channels' mean and deviation. A model that expects one of these classifies more of those correctly (`status_of`).
    """
    x, n = subject.x, len(subject)
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True).clamp_min(1e-6)
    correct = int(subject.correct().sum())
    others = {
        "images in 0 to 255": int(subject.correct(255 * x).sum()),
        "images normalised outside": int(subject.correct((x - mean) / std).sum()),
    }
    name, most = max(others.items(), key=lambda item: item[1])
    status = status_of(most - correct, n)
    detail = f"{percent(correct, n)} correct on images in [0, 1], {percent(most, n)} on {name}"
    figures = {"least": float(x.min()), "largest": float(x.max()), "right": correct, "right_otherwise": others}
    return SanityCheck("inputs", status, detail, figures)


def deterministic_forward(subject: Subject) -> SanityCheck:
    """The same images give the same logits twice.

    PASS for equal to the last bit; WARN for a difference within rounding (1e-4 of the largest logit), as some GPU
    kernels leave; FAIL beyond: gradients of one draw mislead an attack, and AutoAttack's standard version does not
    apply.
    """
    first, second = subject.logits(), subject.logits()
    difference = _difference(first, second)
    status: Status = "PASS" if difference == 0 else "WARN" if difference <= _ROUNDING else "FAIL"
    turned = int((first.argmax(1) != second.argmax(1)).sum())
    detail = (
        "the same images give the same logits twice"
        if status == "PASS"
        else f"the same images give other logits the second time: {difference:.2g} of the largest logit, "
        f"{turned} of {len(subject)} predictions turn"
    )
    return SanityCheck("deterministic forward", status, detail, {"difference": difference, "turned": turned})


def batch_independence(subject: Subject) -> SanityCheck:
    """An image's logits do not depend on its neighbours in the batch.

    Compared: the batch, the batch in reverse order, and the first 8 images alone. PASS within rounding (1e-4 of the
    largest logit), else FAIL: batch norm that still normalises by the batch is the usual reason.
    """
    together = subject.logits()
    backwards = subject.logits(subject.x.flip(0)).flip(0)
    alone = torch.cat([subject.model(image[None]) for image in subject.x[:_ALONE]])
    difference = max(_difference(together, backwards), _difference(together[:_ALONE], alone))
    status: Status = "PASS" if difference <= _ROUNDING else "FAIL"
    detail = f"an image alone and in two other batches differs by {difference:.2g} of the largest logit"
    return SanityCheck("batch independence", status, detail, {"difference": difference})


def zero_gradients(subject: Subject) -> SanityCheck:
    """The gradient of the loss reaches the pixels.

    FAIL when more than 10 % of the images have no gradient at all (rounding inside, or logits so large that the
    float32 cross-entropy is exactly 0): gradient attacks on the loss do not work there. WARN above 1 %, and when more
    than 10 % of the other images' pixels have none. Black and white pixels are counted apart: a clamp
    inside the model hides just those.
    """
    counts = torch.zeros(6, dtype=torch.int64)
    for x, y in zip(subject.x.split(subject.batch_size), subject.y.split(subject.batch_size), strict=True):
        with recorded_logits(subject.model) as logits:
            gradient = input_gradient(subject.model, x, y)
        counts += _count_zeros(x, F.cross_entropy(logits[0], y, reduction="none"), gradient)
    images, losses, edge_zero, edge, inner_zero, inner = counts.tolist()
    share = images / len(subject)
    pixels = (edge_zero + inner_zero) / max(1, edge + inner)
    status: Status = "PASS"
    if share > _ZERO_IMAGE_LIMITS[0] or pixels > _ZERO_PIXEL_LIMIT:
        status = "FAIL" if share > _ZERO_IMAGE_LIMITS[1] else "WARN"
    figures = {
        "images": images,
        "images_with_zero_loss": losses,
        "pixel_share": pixels,
        "pixel_share_at_0_and_1": edge_zero / max(1, edge),
        "pixel_share_between": inner_zero / max(1, inner),
    }
    detail = f"{percent(images, len(subject))} of the images have no gradient, and {100 * pixels:.1f} % of pixels"
    if losses:
        detail += f"; the loss of {percent(losses, len(subject))} is exactly 0"
    return SanityCheck("zero gradients", status, detail, figures)


def _count_zeros(x: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
    """Counts images without gradient, with loss 0, and pixels without gradient of the other images, [6] int64."""
    none = (gradient == 0).flatten(1).all(1)
    seen, shown = gradient[~none] == 0, x[~none]
    edge = (shown == 0) | (shown == 1)
    counts = (none, loss == 0, seen & edge, edge, seen & ~edge, ~edge)
    return torch.stack([count.sum() for count in counts]).cpu()


def random_noise(subject: Subject, robust: int) -> SanityCheck:
    """Uniform noise of size epsilon hurts little, and less than PGD-10, which leaves `robust` images correct.

    PASS for a loss of at most 5 % of the images beyond `slack` (mean of four draws), WARN for at most 15 %, FAIL for
    more than that or for noise that leaves fewer images correct than PGD-10 does (`status_of`): a search that loses
    to random guessing does not work. WARN too where PGD-10 breaks no more than noise.
    """
    n, ball = len(subject), subject.threat_model
    generator = torch.Generator().manual_seed(subject.seed)
    draws = (torch.rand(subject.x.shape, generator=generator).to(subject.x) for _ in range(_NOISE_DRAWS))
    left = [int(subject.correct(ball.start(subject.x, noise)).sum()) for noise in draws]
    natural, mean = int(subject.correct().sum()), sum(left) / _NOISE_DRAWS
    fall = natural - mean - slack(n)
    by_fall: Status = "PASS" if fall <= _NOISE_LIMITS[0] * n else "WARN" if fall <= _NOISE_LIMITS[1] * n else "FAIL"
    by_attack: Status = "FAIL" if status_of(robust - mean, n) != "PASS" else "WARN" if robust >= mean else "PASS"
    detail = f"{percent(natural, n)} correct without, {percent(mean, n)} with noise, {percent(robust, n)} under PGD-10"
    figures = {"natural": natural, "noise": left, "pgd10": robust}
    return SanityCheck("random noise", worst(by_fall, by_attack), detail, figures)


def _difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max() / first.abs().max().clamp_min(1e-12))
