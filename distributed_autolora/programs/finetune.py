"""Fine-tunes a pre-trained network on labelled images so that it is robust to adversarial perturbations."""

from __future__ import annotations

from distributed_autolora.cli import parse_training_flags


def main() -> None:
    """Trains, evaluates and tracks one run, and checks its result."""
    flags = parse_training_flags(
        "Robust fine-tuning with AutoLoRa. On a local Ray by default; inside a submitted job, on its cluster.",
        default_recipe="demo",
    )
    from distributed_autolora.data.catalog import data_folder
    from distributed_autolora.orchestration.evaluations.post_training import check_attacks, evaluate_finished
    from distributed_autolora.orchestration.runs.train import train_run

    check_attacks(flags.evaluate, data_folder(flags.experiment.data))
    finished = train_run(flags.experiment, fresh=flags.fresh, in_process=flags.in_process)
    evaluate_finished(finished.folder, flags.evaluate, in_process=flags.in_process)
