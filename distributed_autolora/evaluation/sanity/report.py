"""Can the result of an evaluation be believed? Checks on a subset of the test images.

An attack that fails does not prove a robust model: it may have been misled by its gradients (Athalye et
al., 2018; Carlini et al., 2019). Each check states something that holds for every honest model.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distributed_autolora.core.metrics import AccuracyCount
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.evaluation.attacks import pgd_step_size
from distributed_autolora.evaluation.guard import check_differentiable, check_inputs, check_logits, undisturbed
from distributed_autolora.evaluation.sanity import (
    model as sanity_model,
)
from distributed_autolora.evaluation.sanity import (
    search as sanity_search,
)
from distributed_autolora.evaluation.sanity import (
    stronger_attack as sanity_stronger,
)
from distributed_autolora.evaluation.sanity.rules import SanityCheck, Status, Subject, slack

__all__ = ["SanityCheck", "Status", "check_sanity", "slack", "worst"]

SQUARE_QUERIES = 500


def check_sanity(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat_model: ThreatModel,
    accuracies: Mapping[str, AccuracyCount] | None = None,
    seed: int = 0,
    step_size: float | None = None,
    square_queries: int = SQUARE_QUERIES,
    batch_size: int = 100,
) -> tuple[SanityCheck, ...]:
    """Runs every check; it costs about 400 gradients and `square_queries` forwards an image.

    Args:
        model: logits of images in [0, 1]; left as it was.
        x: [n, C, H, W] float32 images in [0, 1]; 100 to 200 test images are enough, 1 is the least.
        y: [n] labels.
        threat_model: the one that the model was judged under.
        accuracies: what was measured on the whole test set, for the order of attacks; keys such as
            "natural_accuracy" and "robust_accuracy/autoattack".
        seed: of random starts, noise and Square.
        step_size: length of a PGD step; None: epsilon / 4.
        square_queries: budget of the Square attack, which runs on all images here.
        batch_size: images per forward, for memory only.

    Raises:
        ValueError: for no images, or images that are not float32 [n, C, H, W].
        UserError: for images outside [0, 1], or a model that cannot be judged.
    """
    if not len(x):
        raise ValueError("sanity checks need at least one image")
    check_inputs(model, x, y, threat_model)
    with undisturbed(model) as device, torch.no_grad():
        x, y = x.to(device), y.to(device).long()
        check_differentiable(model, x)
        check_logits(model(x[:batch_size]), y[:batch_size])
        step = pgd_step_size(threat_model) if step_size is None else step_size
        subject = Subject(model, x, y, threat_model, seed, step, batch_size)
        evidence = sanity_search.gather(subject, square_queries)
        return (
            sanity_model.inputs(subject),
            sanity_model.deterministic_forward(subject),
            sanity_model.batch_independence(subject),
            sanity_model.zero_gradients(subject),
            sanity_model.random_noise(subject, evidence.robust(10)),
            sanity_search.steps(evidence),
            sanity_search.loss_by_step(evidence),
            sanity_search.restarts(evidence),
            sanity_search.random_start(evidence),
            sanity_search.order(evidence, accuracies or {}),
            sanity_search.large_epsilon(subject),
            sanity_search.square(evidence),
            sanity_stronger.stronger(subject, evidence),
        )


def worst(checks: tuple[SanityCheck, ...]) -> Status:
    """Returns FAIL if any check failed, else WARN if any warned, else PASS."""
    found = {check.status for check in checks}
    return "FAIL" if "FAIL" in found else "WARN" if "WARN" in found else "PASS"
