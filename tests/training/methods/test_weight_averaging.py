"""A moving average of the weights in a run: deployed, teaching, and in every checkpoint."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distributed_autolora.config import AttackConfig
from distributed_autolora.core.attacks import eval_mode
from distributed_autolora.core.fast_attack.attack_network import AttackNetwork
from distributed_autolora.errors import UserError
from distributed_autolora.records import AccuracyCount
from distributed_autolora.training.attacks import FastAttack, build_attack
from distributed_autolora.training.checkpoint import TrainingState
from distributed_autolora.training.evaluation import validate
from distributed_autolora.training.loop import run_epoch
from distributed_autolora.training.methods.registry import METHODS, Method, method_of
from distributed_autolora.training.trainer import Trainer
from tests.training.tasks import fitted, small_config, take_step, trainer_of, write_task
from tests.training.test_resume import FolderReporter, assert_same, run

BOTH: dict[str, Any] = {"weight_average": "both", "branch_batch_norm": "own"}
AVERAGE = "average.network."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_task(tmp_path_factory.mktemp("data") / "task", train=140)


def steps_of(trainer: Trainer, count: int) -> None:
    trainer.set_loss_weights(0.5)
    trainer.objective.train()
    for step in range(count):
        take_step(trainer, trainer.data.split.train[16 * step : 16 * (step + 1)])


def averaged(state: Any) -> dict[str, Tensor]:
    return {name.removeprefix(AVERAGE): value for name, value in state.items() if name.startswith(AVERAGE)}


def test_a_step_moves_the_average_of_the_weights_after_it_and_trains_nothing_of_it(folder: str) -> None:
    trainer = trainer_of(small_config(folder, **BOTH))
    start = {name: value.clone() for name, value in trainer.backbone.state_dict().items()}
    steps_of(trainer, 1)
    for name, value in averaged(trainer.objective.state_dict()).items():
        now = trainer.backbone.state_dict()[name]
        expected = 0.1 * start[name] + 0.9 * now if now.is_floating_point() else now
        torch.testing.assert_close(value, expected, msg=name)
    optimized = {id(one) for group in trainer.step.optimizer.param_groups for one in group["params"]}
    for name, parameter in trainer.objective.named_parameters():
        is_average = name.startswith("average.")
        assert parameter.requires_grad == (parameter.grad is not None) == (id(parameter) in optimized), name
        assert parameter.requires_grad != is_average, name


def test_an_average_that_is_only_deployed_leaves_training_as_it_was_bit_for_bit(folder: str) -> None:
    states = []
    for average in ("none", "deployed"):
        trainer = trainer_of(small_config(folder, weight_average=average))
        steps_of(trainer, 5)
        states.append(trainer.backbone.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_the_soft_labels_of_a_step_are_the_averages_on_the_natural_images(folder: str) -> None:
    """Without an attack both images of a pair are the same, and only the teacher makes a difference to learn from."""
    config = small_config(folder, method="vanilla", weight_average="teacher")
    config = replace(config, train_attack=AttackConfig(num_steps=0, random_start=False))
    trainer = trainer_of(config)
    steps_of(trainer, 3)
    rows = trainer.data.split.train[48:64]
    x, _ = trainer.data.training_batch(rows, 1, "augmentation")
    teacher = copy.deepcopy(trainer.backbone).eval()
    teacher.load_state_dict(averaged(trainer.objective.state_dict()))
    learner = copy.deepcopy(trainer.backbone).train()
    with torch.no_grad():
        labels, logits = teacher(x).softmax(1), learner(x)
    trainer.progress = trainer.begin_epoch()
    take_step(trainer, rows)
    expected = 6.0 * (labels * (labels.log() - logits.log_softmax(1))).sum(1).mean()
    assert trainer.progress.sums.means()["kl"] == pytest.approx(float(expected), rel=1e-4)
    assert expected > 1e-3
    assert trainer.deployed is trainer.backbone


def test_validation_and_the_deployed_weights_are_those_of_the_average(folder: str, tmp_path: Path) -> None:
    config = small_config(folder, epochs=2, global_batch_size=32, weight_average="deployed")
    trainer = trainer_of(config)
    run_epoch(trainer)
    attack = FastAttack(AttackNetwork(trainer.deployed), build_attack(config, config.eval_attack))
    found = validate(config, trainer.deployed, replace(trainer.attacks, evaluation=attack), trainer.data)
    assert trainer.history[0].natural == found.natural
    assert trainer.history[0].robust == found.robust
    result = fitted(config, FolderReporter(tmp_path))
    best = TrainingState.load(max(tmp_path.iterdir())).best
    assert set(result.weights) == set(trainer.backbone.state_dict())
    for name, value in result.weights.items():
        assert torch.equal(value, averaged(best)[name]), name
    assert any(not torch.equal(value, best[f"backbone.{name}"]) for name, value in result.weights.items())
    deployed = {**trainer.deployed.state_dict(), **result.weights}
    trainer.deployed.load_state_dict(deployed)
    x, y = trainer.data.test_batch(torch.arange(30))
    with eval_mode(trainer.deployed), torch.no_grad():
        correct = int((trainer.deployed(x).argmax(1) == y).sum())
    assert result.summary.test is not None
    assert result.summary.test.natural == AccuracyCount(correct, 30)


def resumed_and_not(task: str, folder: str, method: str, switches: dict[str, Any]) -> tuple[Any, Any]:
    """Runs four epochs of four steps, once without and once with two stops within an epoch."""
    place = Path(folder)
    alone = run(task, place / "alone", epochs=4, method=method, switches=switches)
    for stop in ((0, 2), (1, 3)):
        stopped = run(task, place / "stopped", stop, epochs=4, method=method, switches=switches, checkpoint_every_s=0.0)
        assert stopped is None
    return alone, run(task, place / "stopped", epochs=4, method=method, switches=switches)


def assert_same_end(folder: Path, alone: Any, resumed: Any) -> None:
    assert_same(alone, resumed)
    one, other = (TrainingState.load(max((folder / name).iterdir())) for name in ("alone", "stopped"))
    for part in ("model", "best", "momentum"):
        values, others = getattr(one, part), getattr(other, part)
        assert values.keys() == others.keys()
        assert all(torch.equal(value, others[name]) for name, value in values.items()), part
    assert averaged(one.model)
    assert any(record["restored"] for record in alone[1]), "the test should also cross a restore"


@pytest.mark.parametrize(("method", "switches"), [("autolora", BOTH), ("twins", {"weight_average": "both"})])
def test_a_run_with_an_average_goes_on_within_an_epoch_bit_for_bit(
    folder: str, tmp_path: Path, method: str, switches: dict[str, Any]
) -> None:
    assert_same_end(tmp_path, *resumed_and_not(folder, str(tmp_path), method, switches))


def test_a_teacher_for_a_method_without_soft_labels_is_refused(folder: str) -> None:
    METHODS["taught by no one"] = Method(build=lambda _, backbone: backbone)
    try:
        config = small_config(folder, method="taught by no one", weight_average="teacher")
        with pytest.raises(UserError, match=r'weight_average is "teacher".*no soft labels.*autolora, vanilla, twins'):
            method_of(config)
        deployed = method_of(replace(config, method=replace(config.method, weight_average="deployed")))
        assert deployed is METHODS["taught by no one"]
    finally:
        del METHODS["taught by no one"]
