"""A loss that is not finite ends a run within the configured number of steps."""

from pathlib import Path

import pytest
import torch

from distributed_autolora.core.objectives import LossTerms
from distributed_autolora.errors import TrainingDivergedError
from distributed_autolora.training.epoch import LossSums
from tests.training.tasks import changed, fitted, small_config, trainer_of, write_task
from tests.training.test_resume import FolderReporter


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_loss_is_found_at_the_next_check_and_not_before(bad: float) -> None:
    sums = LossSums(check_every=3, where="epoch 4")
    sums.add(LossTerms({"natural": torch.tensor(bad)}), denominator=2, global_rows=2)
    sums.add(LossTerms({"natural": torch.tensor(1.0)}), denominator=2, global_rows=2)
    with pytest.raises(TrainingDivergedError, match=r"epoch 4, within the 3 steps up to step 3 \(natural"):
        sums.add(LossTerms({"natural": torch.tensor(1.0)}), denominator=2, global_rows=2)


def test_the_mean_of_a_ragged_epoch_is_the_mean_over_its_rows() -> None:
    sums = LossSums(check_every=100, where="epoch 1")
    sums.add(LossTerms({"natural": torch.tensor(2.0), "kl": torch.tensor(1.0)}), denominator=3, global_rows=3)
    sums.add(LossTerms({"natural": torch.tensor(6.0), "kl": torch.tensor(5.0)}), denominator=1, global_rows=1)
    assert sums.means() == {"total": 5.0, "natural": 3.0, "kl": 2.0}


def test_a_run_that_diverges_says_so(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task", train=130)
    config = small_config(folder, epochs=3)
    config = changed(config, optimization={"lr": 1e20}, scaling={"check_finite_every": 2})
    with pytest.raises(TrainingDivergedError, match=r"no longer finite in epoch 1\b.*Lower optimization\.lr"):
        fitted(config, FolderReporter(tmp_path / "checkpoints"))


def test_weights_that_are_not_finite_are_never_in_a_checkpoint(tmp_path: Path) -> None:
    trainer = trainer_of(small_config(write_task(tmp_path / "task", train=130)))
    with torch.no_grad():
        next(trainer.objective.parameters()).fill_(torch.inf)
    with pytest.raises(TrainingDivergedError, match=r"weights are no longer finite in epoch 1\."):
        trainer.state()
