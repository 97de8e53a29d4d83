"""Fine-tunes a pre-trained network on labelled images so that it withstands adversarial perturbations."""

from __future__ import annotations

from distributed_autolora.cli import parse_training_flags, run_program


def main() -> None:
    """Trains, judges and tracks one run."""
    flags = parse_training_flags(
        "Robust fine-tuning with AutoLoRa. On a local Ray by default; inside a submitted job, on its cluster.",
        default_recipe="demo",
    )
    from distributed_autolora.orchestration.train_run import train_run

    train_run(flags.experiment, fresh=flags.fresh)


if __name__ == "__main__":
    run_program(main)
