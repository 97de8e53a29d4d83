"""Evaluates a model by adversarial attacks, image by image, on several workers."""

from __future__ import annotations

from distributed_autolora.cli import parse_flags
from distributed_autolora.orchestration.evaluations.request import EvaluationRequest

WHEN_INTERRUPTED = "Finished chunks are kept: the same command resumes with the others."


def main() -> None:
    """Evaluates one model, or resumes an interrupted evaluation."""
    request = parse_flags(
        EvaluationRequest,
        "Evaluates a run, a weights file or a model in MLflow on test images: AutoAttack and PGD on several workers, "
        "checks of the attacks, exports, and a model card. The same command resumes an interrupted evaluation.",
    )
    from distributed_autolora.orchestration.evaluations.evaluate import evaluate

    evaluate(request)
