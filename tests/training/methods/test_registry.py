"""Methods, schedules and loss weights combine freely; what makes no sense together is refused."""

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distributed_autolora.core.attacks import eval_mode
from distributed_autolora.core.gradient_similarity import batch_gradient_similarity, gradient_similarity
from distributed_autolora.core.keyed_random import keyed_permutation
from distributed_autolora.data.splits import stratified_subset
from distributed_autolora.errors import UserError
from distributed_autolora.models import Classifier
from distributed_autolora.orchestration.runs.preflight import check_inputs, find_inputs
from distributed_autolora.training.evaluation import (
    SIMILARITY_BATCH,
    fit_linear_head,
    natural_branch_accuracy,
    similarity_rows,
)
from distributed_autolora.training.loop import run_epoch
from distributed_autolora.training.methods.registry import METHODS, build_objective
from tests.training.tasks import changed, small_config, trainer_of, write_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_task(tmp_path_factory.mktemp("data") / "task", train=150)


@pytest.mark.parametrize("schedule", ["automatic", "step_decay"])
@pytest.mark.parametrize("method", ["autolora", "vanilla", "twins"])
def test_every_method_runs_under_either_schedule(method: str, schedule: str, folder: str) -> None:
    began = time.perf_counter()
    trainer = trainer_of(changed(small_config(folder, method=method), schedule={"name": schedule}))
    run_epoch(trainer)
    run_epoch(trainer)
    assert 0 < sum(record.epoch_seconds for record in trainer.history) < time.perf_counter() - began
    next_lrs = [record.next_lr for record in trainer.history]
    if schedule == "step_decay":
        assert next_lrs == pytest.approx([0.005, 0.0005]), "at 50 % and at 83 % of two epochs"
    else:
        assert next_lrs[0] == 0.05, "before the first decision"
        assert next_lrs[1] == (0.025 if trainer.history[1].restored else 0.05)
    assert (trainer.history[0].natural_weight is not None) == (method == "autolora")


@pytest.mark.parametrize(("fixed", "kept"), [("natural_weight", "kl_weight"), ("kl_weight", "natural_weight")])
def test_one_loss_weight_can_be_fixed_while_the_other_follows_the_accuracy(fixed: str, kept: str, folder: str) -> None:
    trainer = trainer_of(changed(small_config(folder), method={fixed: 0.25}))
    run_epoch(trainer)
    run_epoch(trainer)
    branch = trainer.history[0].natural_branch
    assert branch is not None
    accuracy = branch.accuracy
    followed = {"natural_weight": 1 - accuracy, "kl_weight": 6 * accuracy}
    assert getattr(trainer.history[1], fixed) == 0.25
    assert getattr(trainer.history[1], kept) == pytest.approx(followed[kept])


def test_two_fixed_weights_hold_before_the_first_step_and_need_no_accuracy(folder: str) -> None:
    trainer = trainer_of(changed(small_config(folder), method={"natural_weight": 0.5, "kl_weight": 3.0}))
    run_epoch(trainer)
    assert natural_branch_accuracy(trainer.config, trainer.objective, trainer.data, epoch=0) is None
    assert trainer.history[0].natural_weight == 0.5
    assert trainer.history[0].kl_weight == 3.0
    assert trainer.history[0].natural_branch is None


REFUSALS: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "an unknown method": ({"method": {"name": "twin"}}, r'no method "twin".*mean "twins"'),
    "a fixed weight without the term": (
        {"method": {"name": "twins", "kl_weight": 1.0}},
        r"method\.kl_weight.*twins has no such weight",
    ),
    "statistics for a branch that is not there": (
        {"method": {"name": "vanilla", "branch_batch_norm": "own"}},
        r'branch_batch_norm is "own".*vanilla has no natural branch: only autolora does',
    ),
    "a similarity to a teacher's soft labels": (
        {"method": {"name": "twins", "weight_average": "both"}, "evaluation": {"gradient_similarity_images": 9}},
        r'weight_average is "both".*gradient_similarity_images to 0.*"deployed"',
    ),
    "a similarity that is not defined": (
        {"evaluation": {"gradient_similarity_images": 9}},
        r"gradient_similarity_images.*not defined for autolora.*vanilla, twins",
    ),
    "a similarity on more images than there are": (
        {"method": {"name": "vanilla"}, "evaluation": {"gradient_similarity_images": 999}},
        r"subset of 999 images.*there are 120",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_means_nothing_is_refused_before_work_starts(case: str, folder: str) -> None:
    groups, message = REFUSALS[case]
    with pytest.raises(UserError, match=message) as refusal:
        check_inputs(*find_inputs(changed(small_config(folder), **groups)))
    assert "\n" not in str(refusal.value)


def test_twins_on_a_network_without_batch_norm_is_refused(folder: str) -> None:
    plain = nn.Sequential()
    plain.add_module("conv", nn.Conv2d(1, 4, 3))
    plain.add_module("flat", nn.Flatten())
    plain.add_module("fc", nn.Linear(400, 3))
    with pytest.raises(UserError, match=r"twins does not work on small_resnet.*batch.norm.*Change method\.name"):
        build_objective(small_config(folder, method="twins"), Classifier(plain, (0.5,), (0.25,)))


@pytest.mark.parametrize(("rows", "workers"), [(64, 1), (64, 2), (65, 3), (3, 2), (1, 4)])
def test_the_frozen_rows_of_all_workers_are_the_first_half_of_the_global_batch(rows: int, workers: int) -> None:
    frozen = []
    for worker in range(workers):
        share = torch.arange(rows)[worker::workers]
        arguments = METHODS["twins"].step_arguments(rows, share.tolist())
        frozen += share[: arguments["frozen_rows"]].tolist()
        assert arguments["global_rows"] == rows
    assert sorted(frozen) == list(range(rows // 2))


def test_the_recorded_similarity_is_the_mean_over_a_fixed_subset_of_the_plain_images(folder: str) -> None:
    config = changed(small_config(folder, method="twins"), evaluation={"gradient_similarity_images": 70})
    trainer = trainer_of(config)
    before = {name: value.clone() for name, value in trainer.objective.state_dict().items()}
    run_epoch(trainer)
    rows = similarity_rows(config, trainer.data.table.labels, trainer.data.split)
    assert len(rows.unique()) == 70
    assert set(rows.tolist()) <= set(trainer.data.split.train.tolist())
    assert torch.equal(rows, similarity_rows(replace(config, seed=5), trainer.data.table.labels, trainer.data.split))
    subset = trainer.data.split.train[
        stratified_subset(trainer.data.table.labels[trainer.data.split.train], 70, config.data.split_seed)
    ]
    assert torch.equal(rows, subset[keyed_permutation(config.data.split_seed, "order", 0, 70)]), (
        "epoch 0 is not trained"
    )
    assert any(not torch.equal(value, before[name]) for name, value in trainer.objective.state_dict().items())
    images, batches = [], []
    for batch in rows.split(SIMILARITY_BATCH):
        x, y = trainer.data.plain_batch(batch)
        x_adv = trainer.attacks.evaluation(trainer.backbone, x, y)
        images += gradient_similarity(trainer.objective, x, x_adv, y).tolist()
        batches.append(float(batch_gradient_similarity(trainer.objective, x, x_adv, y)))
    record = trainer.history[0].metrics()
    assert record["gradient_similarity"] == pytest.approx(sum(images) / 70, abs=1e-6)
    assert record["gradient_similarity/batch"] == pytest.approx(sum(batches) / 3, abs=1e-6)
    assert -1 < record["gradient_similarity"] < 1
    assert record["seconds/gradient_similarity"] > 0


def test_measuring_the_similarity_changes_nothing_else(folder: str) -> None:
    states: list[dict[str, Tensor]] = []
    for images in (0, 40):
        config = small_config(folder, method="vanilla")
        trainer = trainer_of(changed(config, evaluation={"gradient_similarity_images": images}))
        run_epoch(trainer)
        run_epoch(trainer)
        states.append(dict(trainer.objective.state_dict()))
        assert (trainer.history[0].gradient_similarity is not None) == (images > 0)
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_a_probed_head_is_the_best_ridge_head_on_natural_images_and_on_those_that_broke_the_heads_before(
    folder: str,
) -> None:
    trainer = trainer_of(small_config(folder, method="vanilla"), torch.float64)
    network, data, attack = trainer.backbone, trainer.data, trainer.attacks.evaluation
    x, y = data.plain_batch(data.split.train)
    images = [x]
    for rounds in range(3):
        fit_linear_head(network, data.plain_batches, data.split.train, 32, attack, rounds)
        with eval_mode(network), torch.no_grad():
            features, labels = network.features(torch.cat(images)), y.repeat(len(images))
        scale = features.std(0)
        weight, bias = (network.head.weight * scale).detach().requires_grad_(), network.head.bias
        loss = F.cross_entropy(F.linear(features / scale, weight, bias), labels) + 1e-4 * weight.square().sum()
        slopes = torch.autograd.grad(loss, [weight, bias])
        assert max(float(slope.abs().max()) for slope in slopes) < 1e-3, "the fit has a minimum here"
        images.append(attack(network, x, y))
