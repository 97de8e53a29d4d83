"""Every study can be built on every task, with the paper's values, and nothing but what it varies differs."""

from dataclasses import replace

import pytest

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.config.recipes import recipe
from distributed_autolora.data.splits import validation_size
from distributed_autolora.errors import UserError
from distributed_autolora.records import settings_text
from distributed_autolora.studies import (
    CUSTOM_TASK,
    EMBEDDED_TASK,
    STUDIES,
    TASKS,
    Study,
    base_config,
    hyperparameters_page,
    study,
    with_settings,
)
from tests.config.test_recipes import APPENDIX
from tests.programs import ROOT


def build(name: str, task: str) -> Study:
    return study(name, base_config(task, weights="w_eps{epsilon}.ckpt" if name == "pretraining_epsilon" else "w.ckpt"))


def values(built: Study, key: str) -> list[object]:
    return [arm.config.flat()[key] for arm in built.arms]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", STUDIES)
def test_every_config_of_every_study_is_valid_and_no_two_runs_are_the_same(name: str, task: str) -> None:
    built = build(name, task)
    configs = [with_settings(arm.config, point) for arm in built.arms for point in arm.points()]
    for config in configs:
        config.validate()
        assert config.data.task == task
    identities = {(config.digest(), config.model.weights) for config in configs}
    assert len(identities) == len(configs)
    assert len({arm.id for arm in built.arms}) == len({arm.label for arm in built.arms}) == len(built.arms)
    assert built.reference in [arm.id for arm in built.arms]
    assert {arm.reference for arm in built.arms} <= {None, *(arm.id for arm in built.arms)}


VARIED_BEYOND_METHOD = {"untuned": {"eval_attack"}, "untuned_sizes": {"data"}}
"""What a study compares beside methods, schedules and weights."""


@pytest.mark.parametrize("name", STUDIES)
def test_arms_share_data_attacks_and_length_but_for_what_is_compared(name: str) -> None:
    built = build(name, "cub")
    varied = VARIED_BEYOND_METHOD.get(name, set())
    for part in ("data", "threat_model", "train_attack", "eval_attack", "compute", "scaling"):
        assert (len({getattr(arm.config, part) for arm in built.arms}) > 1) == (part in varied), part
    assert {arm.config.optimization.epochs for arm in built.arms} == {60}


@pytest.mark.parametrize("name", ["tuned_baselines", "custom"])
def test_baselines_are_searched_and_autolora_is_not(name: str) -> None:
    built = build(name, "cifar10")
    autolora, twins, vanilla = (built.arm(arm) for arm in ("autolora", "twins", "vanilla-rft"))
    assert (len(twins.points()), len(vanilla.points()), autolora.grid) == (18, 6, {})
    assert autolora.config.schedule.name == "automatic"
    assert {twins.config.schedule.name, vanilla.config.schedule.name} == {"step_decay"}
    assert twins.points()[:2] == [
        {"optimization.lr": 0.01, "optimization.weight_decay": 1e-4, "method.twins_gamma": 0.4},
        {"optimization.lr": 0.01, "optimization.weight_decay": 1e-4, "method.twins_gamma": 1.0},
    ]


def test_on_the_shipped_task_the_tuned_comparison_is_small() -> None:
    built = build("tuned_baselines", EMBEDDED_TASK)
    assert [len(arm.points()) for arm in built.arms] == [1, 6, 6]
    assert {len(grid) for arm in built.arms for grid in arm.grid.values()} == {2, 3}
    assert values(built, "data.train_images") == [1000] * 3


def test_the_swept_values_are_those_of_the_papers_tables() -> None:
    assert values(build("lora_rank", "cifar10"), "method.lora_rank") == [2, 4, 8, 16]
    assert values(build("sharpening", "cifar10"), "method.sharpening") == [0.2, 0.5, 0.8, 1.0, 2.0, 3.0, 5.0]
    budgets = build("pretraining_epsilon", "dtd")
    assert values(budgets, "model.weights") == [f"w_eps{e}.ckpt" for e in ("0", "1.0", "2.0", "4.0", "8.0")] * 3
    similarity = build("gradient_similarity", "dtd")
    assert values(similarity, "method.name") == ["vanilla", "twins"]
    assert min(arm.config.evaluation.gradient_similarity_images for arm in similarity.arms) > 0


def test_the_automatic_learning_rate_differs_from_its_partner_in_the_schedule_alone_but_for_the_start() -> None:
    built = build("automatic_lr", "dtd")
    fixed, automatic = built.arm("twins").config, built.arm("twins-automatic-lr").config
    assert (fixed.optimization.lr, automatic.optimization.lr) == (1e-3, 1e-2)
    alike = replace(automatic, schedule=fixed.schedule, optimization=fixed.optimization)
    assert alike == fixed


@pytest.mark.parametrize("rule", ["released", "apgd", "paired"])
def test_every_automatic_arm_follows_the_rule_of_the_config_that_the_study_starts_from(rule: str) -> None:
    base = with_settings(base_config(EMBEDDED_TASK), {"schedule.rule": rule})
    for name, automatic in (("automatic_lr", 4), ("tuned_baselines", 1)):
        schedules = [arm.config.schedule for arm in study(name, base).arms]
        assert [schedule.rule for schedule in schedules if schedule.name == "automatic"] == [rule] * automatic


def test_each_switch_of_the_untuned_study_is_thrown_alone_or_with_those_that_its_name_says() -> None:
    built = build("untuned", EMBEDDED_TASK)
    assert {arm.config.optimization.epochs for arm in built.arms} == {16}
    assert {(arm.config.data.train_images, arm.config.data.val_fraction) for arm in built.arms} == {(1000, 0.25)}
    start = built.arm("autolora").config.flat()
    thrown = {
        arm.id: {key for key, value in arm.config.flat().items() if value != start[key]}
        for arm in built.arms
        if arm.id.startswith("autolora-paired")
    }
    assert all(changed > {"schedule.rule"} for name, changed in thrown.items() if name != "autolora-paired")
    assert thrown["autolora-paired"] == {"schedule.rule"}
    assert thrown["autolora-paired-detached-own-bn"] == {
        "schedule.rule",
        "method.soft_labels",
        "method.branch_batch_norm",
    }
    assert built.arm("twins-detached").config.schedule.name == "step_decay"
    assert built.arm("vanilla-rft-paired-detached").config.schedule.rule == "paired"
    steered = built.arm("autolora-paired-steered-by-the-stronger-attack").config
    assert (steered.eval_attack.num_steps, steered.eval_attack.loss) == (20, "margin")
    assert not steered.eval_attack.random_start
    assert steered.train_attack == built.arm("autolora").config.train_attack


def test_the_finalists_share_their_switches_and_only_baselines_are_searched() -> None:
    built = build("untuned_finalists", EMBEDDED_TASK)
    assert {arm.id: len(arm.points()) for arm in built.arms} == {
        "autolora-switches": 1,
        "vanilla-rft-switches": 1,
        "twins-switches": 1,
        "twins-searched": 6,
        "vanilla-rft-searched": 6,
    }
    assert set(values(built, "method.soft_labels")) == {"detached"}
    assert set(values(built, "method.head_init")) == {"probing"}
    assert values(built, "schedule.rule")[:3] == ["paired"] * 3
    assert values(built, "schedule.name") == ["automatic"] * 3 + ["step_decay"] * 2


def test_the_arms_of_batch_norm_differ_in_their_shards_alone() -> None:
    built = build("batch_norm_shards", "custom")
    assert values(built, "optimization.batch_norm") == ["global"] + ["shards"] * 3
    assert values(built, "optimization.batch_norm_shards") == [None, 2, 4, 8]
    own = recipe("custom")
    assert {arm.config.method.soft_labels for arm in built.arms} == {own.method.soft_labels}
    assert {arm.config.schedule for arm in built.arms} == {own.schedule}


def test_each_size_has_the_released_rule_as_its_reference_and_the_images_that_its_name_says() -> None:
    built = build("untuned_sizes", EMBEDDED_TASK)
    assert len(built.arms) == 20
    for arm in built.arms:
        data, schedule, labels = arm.config.data, arm.config.schedule, arm.config.method.soft_labels
        held_out = validation_size(data.train_images or 0, data.val_fraction, data.val_images_min)
        where = f"{data.train_images:,} of which {held_out} validate"
        assert data.train_images in (4 * held_out, 20 * held_out), "a quarter, or 5 %"
        rule = schedule.rule if schedule.name == "automatic" else "step decay"
        assert arm.label == ", ".join([rule, *(["detached"] if labels == "detached" else []), where])
        assert arm.reference == f"released-{data.train_images}-{held_out}"


@pytest.mark.parametrize(("task", "expected"), APPENDIX.items())
def test_unsearched_baselines_have_the_appendixs_hyperparameters(task: str, expected: tuple[float, ...]) -> None:
    vanilla, twins = (arm.config for arm in build("gradient_similarity", task).arms)
    assert (vanilla.optimization.lr, twins.optimization.lr, twins.method.twins_gamma) == expected
    assert {vanilla.optimization.weight_decay, twins.optimization.weight_decay} == {1e-4}


def test_the_page_of_hyperparameters_is_current() -> None:
    assert (ROOT / "docs" / "hyperparameters.md").read_text() == hyperparameters_page()


def test_the_base_takes_backbone_weights_and_data() -> None:
    base = base_config("cub", backbone="resnet50", weights="w.ckpt", data="images")
    assert (base.model.backbone, base.model.weights, base.data.path) == ("resnet50", "w.ckpt", "images")
    own = base_config(CUSTOM_TASK, recipe_config=ExperimentConfig(seed=3), data="mine")
    assert (own.seed, own.data.path, own.data.task) == (3, "mine", "custom")


def test_settings_read_well_and_reach_the_config() -> None:
    settings = {"optimization.lr": 0.003, "method.twins_gamma": 1.0}
    assert settings_text(settings) == "lr=0.003 gamma=1"
    config = with_settings(ExperimentConfig(), settings)
    assert (config.optimization.lr, config.method.twins_gamma) == (0.003, 1.0)


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("tuned_baseline", "cub", 'no study "tuned_baseline". Did you mean "tuned_baselines"'),
        ("lora_rank", "cubs", 'no task "cubs". Did you mean "cub"'),
        ("pretraining_epsilon", "cub", "give --weights with {epsilon}"),
    ],
)
def test_unknown_names_and_missing_weights_are_refused(name: str, task: str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        study(name, base_config(task, weights="w.ckpt"))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
