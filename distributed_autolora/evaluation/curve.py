"""Robust accuracy over epsilon, and its mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.evaluation.guard import prepared
from distributed_autolora.evaluation.trajectories import pgd_from, start_noise
from distributed_autolora.records import AccuracyCount

CURVE_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""The points of the curve, as shares of the threat model's epsilon."""


def curve_epsilons(threat_model: ThreatModel) -> tuple[float, ...]:
    """Returns the radii of the curve: `CURVE_SHARES` of epsilon, in L-infinity none above 1."""
    limit = 1 if threat_model.norm == "linf" else math.inf
    return tuple(share * threat_model.epsilon for share in CURVE_SHARES if share * threat_model.epsilon <= limit)


def robustness_curve(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat_model: ThreatModel,
    epsilons: Sequence[float],
    seed: int,
    num_steps: int = 20,
    random_starts: int = 1,
) -> dict[float, AccuracyCount]:
    """Counts the images that are robust to PGD in balls of several radii; counts of chunks add.

    At each epsilon PGD has `num_steps` steps of epsilon / 4 from the clean image, then from each random start.
    An image that was broken inside a ball is broken in every larger one, which contains the adversarial image: the
    curve never rises. At 0 it is the natural accuracy. Like any PGD result it is an upper bound.

    Args:
        threat_model: gives the norm; its own epsilon does not matter here.
        epsilons: radii, not negative, in any order; 0 is always added.
        seed: the chunk's own.

    Raises:
        ValueError: as `evaluate_chunk`; so UserError.
    """
    with prepared(model, x, y, threat_model) as (images, labels, logits):
        robust, counts = logits.argmax(1) == labels, {}
        for radius in sorted({0.0, *epsilons}):
            ball = ThreatModel(threat_model.norm, radius, threat_model.bounds)
            for start in range(1 + random_starts) if radius else ():
                rows = robust.nonzero()[:, 0]
                if not len(rows):
                    break
                noise = start_noise(images, seed, start - 1)[rows] if start else None
                search = {"threat_model": ball, "num_steps": num_steps, "step_size": radius / 4}
                x_adv = pgd_from(noise, model, images[rows], labels[rows], **search)
                robust[rows] = model(x_adv).argmax(1) == labels[rows]
            counts[radius] = AccuracyCount(int(robust.sum()), len(images))
    return counts


def expected_robustness(curve: Mapping[float, AccuracyCount]) -> float:
    """Returns the mean robust accuracy when epsilon is uniform on [0, largest epsilon of the curve], in [0, 1].

    It is the area under the curve (trapezoid rule) by the largest epsilon: compare models over the same epsilons only.

    Raises:
        ValueError: for a curve that does not start at 0 or has fewer than two points.
    """
    radii = sorted(curve)
    if len(radii) < 2 or radii[0] != 0:
        raise ValueError(f"the curve has the points {radii}: it needs 0 and a larger epsilon")
    areas = [(right - left) * (curve[left].accuracy + curve[right].accuracy) / 2 for left, right in pairwise(radii)]
    return sum(areas) / radii[-1]
