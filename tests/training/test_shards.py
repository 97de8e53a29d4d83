"""The law of shards: a trajectory depends on the number of shards, never on who computed them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_autolora.training.checkpoint import TrainingState
from distributed_autolora.training.distributed import collectives
from distributed_autolora.training.loop import run_epoch
from distributed_autolora.training.trainer import Trainer
from tests.reporting import runs
from tests.training.gloo import run_workers
from tests.training.tasks import changed, small_config, take_step, trainer_of, write_task

BATCHES = (17, 3, 1)
"""Rows of ragged global batches: more than shards, fewer, one. An epoch adds full ones, of 24."""
IMAGES = 88
"""Of these, 66 train: an epoch has batches of 24, 24 and 18."""
CASES: dict[str, dict[str, Any]] = {
    "autolora": {"branch_batch_norm": "own", "weight_average": "both"},
    "twins": {},
    "vanilla": {},
}


def sharded(task: str, method: str, shards: int | None, dtype: torch.dtype) -> Trainer:
    config = small_config(task, global_batch_size=24, method=method, **CASES[method])
    optimization = {"batch_norm": "shards" if shards else "global", "batch_norm_shards": shards}
    quick: dict[str, Any] = {"train_attack": {"num_steps": 1}, "evaluation": {"masking_every": 0}}
    return trainer_of(changed(config, optimization=optimization, **quick), dtype)


def whole(task: str, method: str, shards: int, checkpoint: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Takes single steps, then an epoch with a checkpoint within it; returns all that came of it."""
    trainer = sharded(task, method, shards, dtype)
    trainer.set_loss_weights(0.5)
    trainer.objective.train()
    gradients, start = {}, 0
    for size in BATCHES:
        take_step(trainer, trainer.data.split.train[start : start + size])
        gradients[size] = {n: p.grad.clone() for n, p in trainer.objective.named_parameters() if p.grad is not None}
        start += size
    losses = trainer.progress.sums.means()
    trainer.progress = trainer.begin_epoch()

    def save() -> None:
        if trainer.progress.step == 2:
            state = trainer.state()
            if collectives.rank() == 0:
                checkpoint.mkdir(parents=True)
                state.save(checkpoint)

    return {"losses": losses, "gradients": gradients, "end": end_of_epoch(trainer, save)}


def continued(task: str, method: str, shards: int, checkpoint: Path, dtype: torch.dtype) -> dict[str, Any]:
    trainer = sharded(task, method, shards, dtype)
    trainer.load(TrainingState.load(checkpoint))
    assert trainer.progress.step == 2
    return end_of_epoch(trainer)


def end_of_epoch(trainer: Trainer, after_step: Any = lambda: None) -> dict[str, Any]:
    run_epoch(trainer, after_step)
    (record,) = runs.without_times(trainer.history)
    del record["num_workers"]
    return {"record": record, "state": dict(trainer.objective.state_dict())}


def law(task: str, shards: int, own: str, other: str, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Returns what came of each method: a run of these workers, and the end of one that others began."""
    return {
        method: {
            **whole(task, method, shards, Path(own) / method, dtype),
            "continued": continued(task, method, shards, Path(other) / method, dtype),
        }
        for method in CASES
    }


@pytest.mark.parametrize(
    ("shards", "numbers"), [(4, (2, 3, 4)), pytest.param(12, (2, 3, 5, 6), marks=pytest.mark.long)]
)
def test_any_number_of_workers_gives_the_trajectory_of_one_and_continue_each_other(
    tmp_path: Path, shards: int, numbers: tuple[int, ...]
) -> None:
    task, before = write_task(tmp_path / "task", train=IMAGES), str(tmp_path / "1")
    alone = law(task, shards, before, before)
    for number in numbers:
        own = str(tmp_path / str(number))
        for worker in run_workers(law, number, task, shards, own, before):
            for method, expected in alone.items():
                found = worker[method]
                torch.testing.assert_close(found["losses"], expected["losses"], rtol=1e-11, atol=1e-12)
                torch.testing.assert_close(found["gradients"], expected["gradients"], rtol=1e-9, atol=1e-11)
                for end in (found["end"], found["continued"], expected["continued"]):
                    torch.testing.assert_close(end["state"], expected["end"]["state"], rtol=1e-9, atol=1e-11)
                    for key, value in expected["end"]["record"].items():
                        assert end["record"][key] == (value if value is None else pytest.approx(value, rel=1e-9)), key
        before = own


def test_the_same_workers_repeat_a_continued_run_bit_for_bit_in_float32(tmp_path: Path) -> None:
    task, own = write_task(tmp_path / "task", train=IMAGES), str(tmp_path / "2")
    workers = run_workers(law, 2, task, 4, own, own, torch.float32)
    for method, found in workers[0].items():
        assert found["continued"]["record"] == found["end"]["record"]
        ends = found["end"], found["continued"], workers[1][method]["end"]
        for end in ends:
            torch.testing.assert_close(end["state"], ends[0]["state"], rtol=0, atol=0)


def test_shards_are_no_other_name_for_the_global_batch(tmp_path: Path) -> None:
    """One shard is; with two, each is normalised by itself."""
    task = write_task(tmp_path / "task", train=60)
    states = {}
    for shards in (None, 1, 2):
        trainer = sharded(task, "vanilla", shards, torch.float64)
        trainer.objective.train()
        take_step(trainer, trainer.data.split.train[:24])
        states[shards] = dict(trainer.objective.state_dict())
    torch.testing.assert_close(states[1], states[None], rtol=1e-12, atol=1e-14)
    differing = [name for name, value in states[None].items() if not torch.allclose(states[2][name], value, rtol=1e-6)]
    assert len(differing) > len(states[None]) / 2
