"""What a training program does with a run that it has finished: the flag --evaluate."""

from __future__ import annotations

from distributed_autolora.orchestration.run_folder import RunFolder

QUICK, NOTHING = "quick", "none"
_QUICK_IMAGES = 64


def evaluate_finished(folder: RunFolder, attacks: str) -> None:
    """Judges a run that has just finished, as the flag --evaluate of a training program says.

    A run that was not to open its test split is left alone.

    Args:
        folder: the run.
        attacks: names separated by commas; "quick": the sanity checks on a few test images, which say whether the
            result that the run ended with can be believed; "none": nothing.

    Raises:
        UserError: for an unknown attack.
        RunFailedError: for lost workers beyond the limit.
    """
    result, scaling = folder.read("result.json"), folder.config().scaling
    if attacks == NOTHING or result["test"] is None:
        return
    from distributed_autolora.orchestration.evaluate import evaluate_run

    is_quick = attacks == QUICK
    print(flush=True)
    evaluate_run(
        folder,
        attacks=result["attack"] if is_quick else attacks,
        num_workers=scaling.num_workers,
        use_gpu=scaling.use_gpu,
        sanity=True,
        images=min(_QUICK_IMAGES, result["test_images"]) if is_quick else None,
    )


def check_attacks(attacks: str) -> None:
    """Refuses a flag --evaluate that `evaluate_finished` could not follow.

    Raises:
        UserError: for an unknown attack.
    """
    if attacks not in (QUICK, NOTHING):
        from distributed_autolora.evaluation.attacks import parse

        parse(attacks)
