"""Where a training step communicates, and where it does not."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from distributed_autolora.training.distributed.batch_norm import BatchNormOfWorkers
from distributed_autolora.training.evaluation import validate
from tests.training.gloo import run_workers
from tests.training.tasks import changed, small_config, take_step, trainer_of, write_task

Collectives = dict[str, int]


def collectives_of(action: Callable[[], object]) -> Collectives:
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        action()
    names = (event.name for event in profiled.events() or [])
    return dict(Counter(name.removeprefix("c10d::") for name in names if name.startswith("c10d::")))


def collectives_of_a_step(folder: str, **optimization: Any) -> tuple[int, dict[str, Collectives]]:
    config = changed(small_config(folder), optimization=optimization)
    trainer = trainer_of(config)
    trainer.objective.train()
    # The first step of a process also agrees on the layout of the gradient bucket.
    take_step(trainer, trainer.data.split.train[:16])
    x, y = trainer.data.plain_batch(trainer.data.split.train[:16])
    parts = {}
    parts["attack"] = collectives_of(lambda: trainer.attacks.train(trainer.backbone, x, y))
    terms = []
    parts["forward"] = collectives_of(lambda: terms.append(trainer.step.objective(x, x, y)))
    parts["backward"] = collectives_of(terms[0].total.backward)
    parts["optimizer"] = collectives_of(trainer.step.optimizer.step)
    parts["validation"] = collectives_of(lambda: validate(config, trainer.deployed, trainer.attacks, trainer.data))
    parts["whole step"] = collectives_of(lambda: take_step(trainer, trainer.data.split.train[:16]))
    norms = sum(isinstance(module, BatchNormOfWorkers) for module in trainer.backbone.modules())
    return norms, parts


def test_collectives_of_a_step_are_those_of_batch_norm_and_one_gradient_reduction(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task", train=130)
    norms, parts = run_workers(collectives_of_a_step, 2, folder)[0]
    assert norms == 15
    assert parts["attack"] == {}, "every worker attacks its own shard alone"
    assert parts["forward"] == {"_allgather_base_": 2 * norms}, "statistics of the natural and the adversarial forward"
    # Nothing before the natural branch's first batch norm is trained by it, so that one has no backward.
    assert parts["backward"] == {"_allgather_base_": 2 * norms - 1, "allreduce_": 1}, (
        "two sums a batch norm; one bucket"
    )
    assert parts["optimizer"] == {}
    assert parts["validation"] == {"allgather_": 2}, "the number of each worker's rows, and what became of them"


def test_with_shards_a_step_reduces_its_gradients_and_its_running_statistics_once_and_nothing_else(
    tmp_path: Path,
) -> None:
    folder = write_task(tmp_path / "task", train=130)
    action = partial(collectives_of_a_step, batch_norm="shards", batch_norm_shards=4)
    norms, parts = run_workers(action, 2, folder)[0]
    assert norms == 15
    assert (parts["attack"], parts["forward"], parts["optimizer"]) == ({}, {}, {})
    assert parts["backward"] == {"allreduce_": 1}
    assert parts["whole step"] == {"allreduce_": 2}
