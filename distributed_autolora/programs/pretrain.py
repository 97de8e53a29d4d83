"""Adversarially pre-trains a backbone and writes it as safetensors, with a card that says what it is."""

from __future__ import annotations

from distributed_autolora.cli import parse_training_flags, typed_command


def main() -> None:
    """Trains one run, then writes its backbone and card to the run's folder."""
    flags = parse_training_flags(
        "Adversarial pre-training of a backbone. The run's folder gets backbone.safetensors and backbone.md.",
        default_recipe="pretrain-fashion-mnist",
    )
    from distributed_autolora.data.catalog import data_folder
    from distributed_autolora.orchestration.evaluations.post_training import check_attacks, evaluate_finished
    from distributed_autolora.orchestration.runs.results import write_backbone
    from distributed_autolora.orchestration.runs.train import train_run

    check_attacks(flags.evaluate, data_folder(flags.experiment.data))
    finished = train_run(flags.experiment, fresh=flags.fresh, in_process=flags.in_process)
    weights = write_backbone(finished, typed_command())
    evaluate_finished(finished.folder, flags.evaluate, in_process=flags.in_process)
    print(f"\nBackbone: {weights} (card: {weights.with_suffix('.md').name})")
