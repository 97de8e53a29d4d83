"""The law of distribution: W workers compute what one worker computes at the same global batch."""

from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_autolora.core.objectives import LossTerms
from distributed_autolora.training.distributed import collectives
from distributed_autolora.training.epoch import LossSums
from distributed_autolora.training.loop import run_epoch
from tests.reporting import runs
from tests.training.gloo import run_workers
from tests.training.tasks import small_config, take_step, trainer_of, write_task

BATCHES = (64, 40, 3, 1)


class _RecordedSums(LossSums):
    """Also keeps every step's terms, summed over the workers."""

    def __init__(self) -> None:
        super().__init__(check_every=1, where="the test")
        self.steps: list[list[float]] = []

    def add(self, terms: LossTerms, denominator: float, global_rows: int) -> None:
        super().add(terms, denominator, global_rows)
        parts = torch.stack([part.detach() for part in terms.parts.values()])
        self.steps.append((collectives.sum_over_workers(parts) / collectives.world_size()).tolist())


OWN = {"branch_batch_norm": "own", "weight_average": "both"}
AVERAGE = {"weight_average": "both"}


def trajectory(folder: str, method: str, switches: dict[str, Any]) -> dict[str, Any]:
    """Takes steps on global batches of 64, 40, 3 and 1 rows, then a whole epoch; returns all that came of it."""
    config = small_config(folder, method=method, **switches)
    trainer = trainer_of(config, torch.float64)
    trainer.set_loss_weights(0.5)
    sums = trainer.progress.sums = _RecordedSums()
    gradients = []
    trainer.objective.train()
    position = 0
    for size in BATCHES:
        rows = trainer.data.split.train[position : position + size]
        take_step(trainer, rows)
        gradients.append(
            {name: p.grad.clone() for name, p in trainer.objective.named_parameters() if p.grad is not None}
        )
        position += size
    trainer.progress = trainer.begin_epoch()
    run_epoch(trainer)
    run_epoch(trainer)
    (record,) = runs.without_times(trainer.history[-1:])
    del record["num_workers"]
    return {"losses": sums.steps, "gradients": gradients, "state": trainer.objective.state_dict(), "record": record}


@pytest.mark.parametrize(
    ("method", "switches", "numbers"),
    [
        ("autolora", {}, (2, 3)),
        ("twins", {}, (2, 3)),
        ("autolora", OWN, (2,)),
        pytest.param("twins", AVERAGE, (2,), marks=pytest.mark.long),
        pytest.param("vanilla", {}, (2,), marks=pytest.mark.long),
    ],
    ids=str,
)
def test_several_workers_give_the_trajectory_of_one(
    tmp_path: Path, method: str, switches: dict[str, Any], numbers: tuple[int, ...]
) -> None:
    folder = write_task(tmp_path / "task", train=169)
    alone = trajectory(folder, method, switches)
    for worker in [one for number in numbers for one in run_workers(trajectory, number, folder, method, switches)]:
        torch.testing.assert_close(worker["losses"], alone["losses"], rtol=1e-11, atol=1e-12)
        for ours, theirs in zip(alone["gradients"], worker["gradients"], strict=True):
            assert ours.keys() == theirs.keys()
            torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(dict(worker["state"]), dict(alone["state"]), rtol=1e-9, atol=1e-11)
        assert worker["record"].keys() == alone["record"].keys()
        for key, value in alone["record"].items():
            assert worker["record"][key] == (value if value is None else pytest.approx(value, rel=1e-9)), key
