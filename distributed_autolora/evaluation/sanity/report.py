"""Sanity checks of an evaluation on a subset of the test images: can its result be believed?

An attack that fails does not prove a robust model: it may have been misled by its gradients (Athalye et
al., 2018; Carlini et al., 2019). Each check tests a property of every model without gradient masking.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.evaluation.attacks import pgd_step_size
from distributed_autolora.evaluation.guard import prepared
from distributed_autolora.evaluation.sanity import masking as of_masking
from distributed_autolora.evaluation.sanity import model as of_model
from distributed_autolora.evaluation.sanity import search as of_search
from distributed_autolora.evaluation.sanity.rules import Subject
from distributed_autolora.records import AccuracyCount, SanityCheck

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

    100 to 200 test images are enough, 1 is the least. The accuracies are of the whole test set, by their logged names.

    Raises:
        ValueError: for no images, else as `evaluate_chunk`; so UserError.
    """
    if not len(x):
        raise ValueError("sanity checks need at least one image")
    step = pgd_step_size(threat_model) if step_size is None else step_size
    with prepared(model, x, y, threat_model, batch_size) as (images, labels, _):
        subject = Subject(model, images, labels, threat_model, seed, step, batch_size)
        evidence = of_search.gather(subject, square_queries)
        stronger = of_masking.stronger(subject, evidence)
        return (
            of_model.inputs(subject),
            of_model.deterministic_forward(subject),
            of_model.batch_independence(subject),
            of_model.zero_gradients(subject),
            of_model.random_noise(subject, evidence.robust(10)),
            of_search.steps(evidence),
            of_search.loss_by_step(evidence),
            of_search.restarts(evidence),
            of_search.random_start(evidence),
            of_search.order(evidence, accuracies or {}),
            of_search.large_epsilon(subject),
            of_search.square(evidence),
            of_masking.masking(stronger),
            of_masking.loss_gap(stronger),
        )
