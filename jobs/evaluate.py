"""Judges a model by adversarial attacks that can be believed, image by image, on several workers."""

from __future__ import annotations

from distributed_autolora.cli import parse_flags, run_program
from distributed_autolora.orchestration.evaluations.request import EvaluationRequest


def main() -> None:
    """Judges one model, or continues an evaluation that was interrupted."""
    request = parse_flags(
        EvaluationRequest,
        "Judges a run, a file of weights or a model in MLflow on test images: AutoAttack and PGD in chunks on several "
        "workers, checks of the attacks, exports, and a model card. The same command continues an interrupted "
        "evaluation.",
    )
    from distributed_autolora.orchestration.evaluations.evaluate import evaluate

    evaluate(request)


if __name__ == "__main__":
    run_program(
        main,
        when_interrupted="Finished chunks are kept: the same command goes on with the others.",
    )
