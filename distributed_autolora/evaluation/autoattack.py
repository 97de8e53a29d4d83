"""The parts of AutoAttack, run by pyautoattack one by one, to know which part broke each image.

Each part runs on the images that are still robust. pyautoattack does the same with several parts, with the same
results, because every part seeds its own random numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.evaluation.attacks import Budget, num_targets
from distributed_autolora.evaluation.guard import model_device

LOGGER = logging.getLogger("auto-attack")
"""The logger of pyautoattack; all messages have level DEBUG."""

NATURAL = -1
_NORMS: dict[str, Literal["Linf", "L2"]] = {"linf": "Linf", "l2": "L2"}


@dataclass(frozen=True)
class PartsOutcome:
    """Outcome of each image under an ensemble."""

    parts: tuple[str, ...]
    x_adv: Tensor
    """[n, C, H, W]: the image that was misclassified, the natural image where none was found."""
    broken_by: Tensor
    """int64 [n]: position in `parts` of the first that broke the image; NATURAL; len(parts): robust to all."""


class _AtDebug(logging.LoggerAdapter[logging.Logger]):
    """Logs everything at DEBUG: its warnings would repeat for every chunk; the sanity checks cover them."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        self.logger.log(logging.DEBUG, msg, *args, **kwargs)


def configured(
    model: nn.Module, *, parts: Sequence[str], threat_model: ThreatModel, num_classes: int, seed: int, budget: Budget
) -> AutoAttack:
    """Returns AutoAttack with the standard version's settings, but this many classes and this budget.

    The version is "custom", because "standard" crashes with fewer than 10 classes; its 5 restarts are set to
    the standard version's 1.
    """
    attack = AutoAttack(
        model,
        attacks=list(parts),
        eps=threat_model.epsilon,
        norm=_NORMS[threat_model.norm],
        seed=seed,
        version="custom",
        device=model_device(model),
    )
    attack.apgd.n_restarts = attack.apgd_targeted.n_restarts = attack.fab.n_restarts = 1
    attack.apgd.n_iter = attack.apgd_targeted.n_iter = budget.apgd_steps
    attack.fab.n_iter = budget.fab_steps
    attack.square.n_queries = budget.square_queries
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = num_targets(num_classes)
    return attack


def run_parts(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat_model: ThreatModel,
    parts: tuple[str, ...],
    seed: int,
    budget: Budget,
) -> PartsOutcome:
    """Runs the parts in order, each on the images that were robust to those before it, all of these in one batch.

    Call it inside `guard.preserve_state`: pyautoattack seeds the global random numbers, stops tracers and does
    not call `model.eval()`. The result depends on n, the batch size.

    Args:
        model: logits of images in [0, 1], in eval mode.
        x: [n, C, H, W] float32 images on the model's device; y: [n] int64 labels, there too.
        parts: names from `attacks.AUTOATTACK_PARTS`, such as `attacks.parts_for` gives.
    """
    with torch.no_grad():
        logits = model(x)
    robust, x_adv = logits.argmax(1) == y, x.clone()
    broken_by = torch.where(robust, len(parts), NATURAL)
    for position, part in enumerate(parts):
        rows = robust.nonzero()[:, 0]
        if not len(rows):
            break
        classes = logits.shape[1]
        attack = configured(
            model, parts=[part], threat_model=threat_model, num_classes=classes, seed=seed, budget=budget
        )
        attack.logger = attack.apgd.logger = attack.apgd_targeted.logger = _AtDebug(LOGGER)
        found, predictions = attack.run_standard_evaluation(x[rows], y[rows], batch_size=len(rows))
        broken = predictions != y[rows]
        x_adv[rows[broken]] = found[broken]
        broken_by[rows[broken]] = position
        robust[rows[broken]] = False
    return PartsOutcome(parts, x_adv, broken_by)
