"""What a run steers by is checked by a stronger attack: the alarm rings for masked gradients only, and costs little."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.config.recipes import recipe
from distributed_autolora.core.attacks import eval_mode, halving_pgd, input_gradient
from distributed_autolora.core.schedules import Decision
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.evaluation.masking_test import overstates
from distributed_autolora.records import MaskingCheck
from distributed_autolora.training import loop
from distributed_autolora.training.attacks import attack_name, checking_steps
from distributed_autolora.training.checkpoint import TrainingState, snapshot
from distributed_autolora.training.evaluation import Validation, validate
from distributed_autolora.training.masking_check import CheckResult, check_masking
from distributed_autolora.training.methods.cost import MASKING_SHARE, epoch_passes
from distributed_autolora.training.trainer import Trainer
from tests.reporting import runs
from tests.training.gloo import run_workers
from tests.training.tasks import changed, fitted, small_config, trainer_of, write_task
from tests.training.test_resume import FolderReporter, StoppedError

KEYS = ("val/robust_accuracy_stronger", "val/masking_gap", "val/loss_gap", "val/masking_images")
EPSILON = 0.02


def checking(config: ExperimentConfig, every: int) -> ExperimentConfig:
    """Returns the config with a check every so many epochs, and a training attack dear enough to afford images."""
    return changed(
        config,
        evaluation={"masking_every": every, "test_split": False},
        train_attack={"num_steps": 6},
        schedule={"name": "step_decay"},
    )


def checking_many(folder: str) -> ExperimentConfig:
    """Returns a config with an attack that a network can withstand, and many images to check."""
    config = checking(small_config(folder, epochs=1), 1)
    return changed(
        config,
        threat_model={"epsilon": EPSILON},
        train_attack={"num_steps": 100},  # many images are affordable
        eval_attack={"num_steps": 10, "step_size": EPSILON / 4},
    )


def knowing(config: ExperimentConfig) -> Trainer:
    trainer = trainer_of(config)
    multiply_logits(trainer, 0.0)
    learn_head(trainer)
    return trainer


def multiply_logits(trainer: Trainer, factor: float) -> None:
    with torch.no_grad():
        for parameter in trainer.backbone.head.parameters():
            parameter.mul_(factor)


def found_by(folder: str, factor: float) -> MaskingCheck:
    """Returns the check of a network that knows the classes, and multiplies its logits by `factor`."""
    trainer = knowing(checking_many(folder))
    multiply_logits(trainer, factor)
    return checked(trainer, validated(trainer).outcomes).counts


def validated(trainer: Trainer) -> Validation:
    return validate(trainer.config, trainer.deployed, trainer.attacks, trainer.data)


def checked(trainer: Trainer, outcomes: Tensor) -> CheckResult:
    found = check_masking(trainer.config, trainer.deployed, trainer.attacks, trainer.data, outcomes)
    assert found is not None
    return found


def learn_head(trainer: Trainer) -> None:
    trainer.backbone.eval()
    x, y = trainer.data.plain_batch(trainer.data.split.train)
    head = trainer.backbone.head
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=60)
    with torch.no_grad():
        features = trainer.backbone.features(x)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(head(features), y)
        loss.backward()
        return loss

    optimizer.step(closure)


def rings(check: MaskingCheck) -> bool:
    return overstates(check.broken, check.images)


def test_the_alarm_rings_for_logits_that_hide_their_gradient_and_not_for_the_same_network_without(
    tmp_path: Path,
) -> None:
    folder = write_task(tmp_path / "task", train=240)
    honest, masked = found_by(folder, 1.0), found_by(folder, 1e6)
    assert honest.images == masked.images >= 20
    assert not rings(honest), honest
    assert rings(masked), masked
    assert masked.robust_accuracy == pytest.approx(honest.robust_accuracy, abs=0.1)


def test_the_stronger_attacks_search_on_either_loss_and_begin_with_steps_of_epsilon(task: str) -> None:
    trainer = trainer_of(changed(checking(small_config(task), 1), eval_attack={"num_steps": 10}))
    x, y = trainer.data.plain_batch(trainer.data.split.val[:12])
    assert (attack_name(recipe("demo").eval_attack), checking_steps(recipe("demo").eval_attack)) == ("pgd10", 20)
    epsilon = trainer.config.threat_model.epsilon
    search = {"threat_model": ThreatModel(epsilon=epsilon), "num_steps": 20, "noise": torch.full_like(x, 0.5)}
    for loss, attack in (("cross_entropy", trainer.attacks.same_loss), ("margin", trainer.attacks.other_loss)):
        expected = halving_pgd(trainer.attacks.network, x, y, loss=loss, **search)  # type: ignore[arg-type]
        assert torch.equal(attack(trainer.deployed, x, y, noise=search["noise"]), expected)


def records_of(folder: str) -> list[dict[str, Any]]:
    config = checking(small_config(folder, epochs=2), 2)
    return [record.metrics() for record in fitted(config, dtype=torch.float64).history]


def test_two_workers_record_what_one_does(task: str) -> None:
    alone = records_of(task)
    assert [KEYS[0] in record for record in alone] == [False, True]
    for record in alone[1:]:
        assert record["val/masking_images"] >= 8
        assert record["val/masking_gap"] >= 0
    for worker in run_workers(records_of, 2, task):
        for one, other in zip(alone, worker, strict=True):
            assert one["val/fosc"] == pytest.approx(other["val/fosc"], rel=1e-9)
            assert {key: one.get(key) for key in KEYS} == {key: other.get(key) for key in KEYS}
            assert one["passes/forward"] == other["passes/forward"]


def test_the_logged_stationarity_is_that_of_the_attack_s_results(task: str) -> None:
    trainer = trainer_of(small_config(task), torch.float64)
    data, ball = trainer.data, ThreatModel(epsilon=trainer.config.threat_model.epsilon)
    x, y = data.plain_batch(data.split.val)
    x_adv = trainer.attacks.evaluation(trainer.deployed, x, y)
    with eval_mode(trainer.deployed):
        gradient = input_gradient(trainer.deployed, x_adv, y)
    lowest, highest = (x - ball.epsilon).clamp(0, 1), (x + ball.epsilon).clamp(0, 1)
    rises = torch.maximum(gradient * (lowest - x_adv), gradient * (highest - x_adv)).flatten(1).sum(1)
    assert rises.mean() > 1e-3
    assert validated(trainer).fosc == pytest.approx(float(rises.mean()), rel=1e-6)


def run_with(folder: str, path: Path, stop: tuple[int, int] | None, every: int = 2) -> Any:
    config = checking(small_config(folder, epochs=3), every)
    config = changed(config, scaling={"check_finite_every": 1, "checkpoint_every_s": 0.0})
    try:
        return fitted(config, FolderReporter(path, stop))
    except StoppedError:
        return None


def test_a_run_that_goes_on_within_an_epoch_checks_as_it_would_have_and_no_check_changes_a_weight(
    task: str,
    tmp_path: Path,
) -> None:
    whole, unchecked = run_with(task, tmp_path / "whole", None), run_with(task, tmp_path / "never", None, every=0)
    for stop in ((1, 1), (2, 0)):
        assert run_with(task, tmp_path / "stopped", stop) is None
    resumed = run_with(task, tmp_path / "stopped", None)
    assert [record.masking for record in resumed.history] == [record.masking for record in whole.history]
    assert [record.masking is not None for record in whole.history] == [False, True, True], "every second, and the last"
    assert [record.phase_seconds.get("masking", 0) > 0 for record in whole.history] == [False, True, True]
    assert not any(record.masking or "masking" in record.phase_seconds for record in unchecked.history)
    for name, value in whole.weights.items():
        assert torch.equal(value, unchecked.weights[name]), name


def test_an_image_counts_as_withstanding_only_if_it_withstands_both(task: str) -> None:
    """A row that the evaluation attack broke stays broken, whatever the other attack finds."""
    trainer = trainer_of(checking(small_config(task, epochs=1), 1))
    found = validated(trainer)
    assert len(found.outcomes) == found.natural.total == found.robust.total == len(trainer.data.split.val)
    assert int(found.outcomes.sum()) == found.robust.correct
    check = checked(trainer, torch.zeros_like(found.outcomes))
    assert check.counts == MaskingCheck(check.by_image.images, robust=0, broken=0, broken_by_loss=0)
    assert not check.by_image.newly_broken.any()
    check = checked(trainer, torch.ones_like(found.outcomes))
    images, newly = check.by_image.images, int(check.by_image.newly_broken.sum())
    assert (check.counts.images, check.counts.robust) == (images, images - newly)
    assert check.counts.broken + (check.counts.broken_by_loss or 0) == newly


def steered(folder: str, epochs: int, every: int, interval: int = 1) -> ExperimentConfig:
    config = checking(small_config(folder, epochs=epochs), every)
    return replace(config, schedule=replace(config.schedule, name="automatic", rule="paired", interval=interval))


def test_rule_paired_checks_what_it_may_keep_and_deploys_a_checked_state(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "FOSC_LIMIT", torch.inf)
    config = steered(task, epochs=7, every=100, interval=3)
    history = fitted(config).history
    checked = [record.epoch for record in history if record.masking is not None]
    assert checked == [3, 6, 7], "decisions, and the end"
    assert history[1].best_epoch == 2, "nothing else is there yet"
    assert [record.best_epoch for record in history[3:5]] == [3, 3]
    assert all(record.best_epoch in checked for record in history[2:])


def test_a_large_stationarity_asks_for_further_checks_within_their_share_of_the_passes(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "FOSC_LIMIT", 0.0)
    config = changed(steered(task, epochs=6, every=100, interval=3), train_attack={"num_steps": 2})
    history = fitted(config).history
    checked = [record.epoch for record in history if record.masking is not None]
    further = sorted(set(checked) - {3, 6})
    assert set(checked) >= {3, 6}
    assert further
    images = history[2].masking
    assert images is not None
    passes = [record.passes.forward + record.passes.backward for record in history]
    bare = epoch_passes(config, 110, 30, 2)
    of_a_check = passes[2] - bare.forward - bare.backward
    assert of_a_check == images.images * 2 * (2 * checking_steps(config.eval_attack) + 1)
    for count, epoch in enumerate(further, 1):
        assert count * of_a_check <= MASKING_SHARE * sum(passes[:epoch])
    silent = fitted(changed(config, evaluation={"masking_every": 0})).history
    assert not any(record.masking for record in silent), "no check at all, whatever FOSC says"


def validate_and_decide(trainer: Trainer) -> Decision:
    found = validated(trainer)
    check = checked(trainer, found.outcomes)
    decision = trainer.steering.decide(found, check)
    trainer.steering.remember(found, check)
    record = replace(runs.history(1)[0], robust=found.robust, masking=check.counts, natural_branch=None)
    trainer.history.append(replace(record, next_lr=decision.lr))
    return decision


def test_a_state_that_hides_its_gradients_is_not_kept_and_a_resume_knows_what_fell(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task", train=240)
    config = replace(checking_many(folder), schedule=steered(folder, 9, 1, interval=4).schedule)
    trainer = knowing(config)
    knows = snapshot(trainer.objective)
    assert validate_and_decide(trainer).improved
    weight = trainer.backbone.head.weight
    with torch.no_grad():
        weight.add_(weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    multiply_logits(trainer, 1e6)
    assert not validate_and_decide(trainer).improved
    honest, hiding = trainer.history
    assert hiding.robust.correct > honest.robust.correct, "under the run's own attack it looks better"
    assert hiding.masking is not None
    assert honest.masking is not None
    assert hiding.masking.robust < honest.masking.robust, "and is worse"
    trainer.state().save(tmp_path)
    resumed = trainer_of(config)
    resumed.load(TrainingState.load(tmp_path))
    assert not validate_and_decide(resumed).improved, "it is hiding still"
    resumed.objective.load_state_dict(knows)
    assert validate_and_decide(resumed).improved
