"""Every experiment of the paper has a recipe with the paper's hyperparameters, and each of them trains."""

import math
from dataclasses import replace

import pytest
import torch

from distributed_autolora.cli import parse_training_flags
from distributed_autolora.config import ComputeConfig, ExperimentConfig
from distributed_autolora.config.recipes import (
    PAPER_BACKBONES,
    PAPER_HYPERPARAMETERS,
    PAPER_METHODS,
    RECIPES,
    paper_recipe_name,
    recipe,
)
from distributed_autolora.errors import UserError
from tests.training.tasks import trainer_of, write_task

# Appendix A.1: learning rates of vanilla RFT and TWINS, and TWINS' gamma. AutoLoRa has 0.01 everywhere.
APPENDIX = {
    "cifar10": (0.01, 0.01, 1),
    "cifar100": (0.001, 0.01, 1),
    "dtd": (0.01, 0.001, 1),
    "dogs": (0.001, 0.003, 1),
    "cub": (0.01, 0.01, 3),
    "caltech256": (0.01, 0.003, 1),
}
EXPERIMENTS = [
    (task, backbone, method) for task in APPENDIX for backbone in PAPER_BACKBONES for method in PAPER_METHODS
]


def test_the_paper_s_experiments_have_thirty_six_names() -> None:
    names = {paper_recipe_name(*experiment) for experiment in EXPERIMENTS}
    assert len(names) == 36
    assert names < RECIPES.keys()
    assert {"cifar10", "dtd-resnet50", "dogs-vanilla", "cub-resnet50-twins"} < names
    assert PAPER_HYPERPARAMETERS.keys() == APPENDIX.keys()


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_own_data_get_what_was_found_out_and_the_paper_s_recipes_what_was_released(name: str) -> None:
    config = recipe(name)
    own = name.removesuffix("-l2") in ("custom", "demo", "fashion-mnist", "cifar10-small")
    found = (config.schedule.rule, config.method.soft_labels)
    assert found == (("paired", "detached") if own else ("released", "joint"))
    assert (config.method.branch_batch_norm, config.method.weight_average) == ("shared", "none")


@pytest.mark.parametrize(("task", "backbone", "method"), EXPERIMENTS)
def test_a_recipe_has_the_appendix_s_hyperparameters(task: str, backbone: str, method: str) -> None:
    config = recipe(paper_recipe_name(task, backbone, method))
    config.validate()
    vanilla_lr, twins_lr, gamma = APPENDIX[task]
    assert config.optimization.lr == {"autolora": 0.01, "vanilla": vanilla_lr, "twins": twins_lr}[method]
    assert (config.optimization.weight_decay, config.optimization.momentum) == (1e-4, 0.9)
    assert (config.optimization.epochs, config.optimization.global_batch_size) == (60, 128)
    assert (config.data.task, config.model.backbone, config.method.name) == (task, backbone, method)
    assert config.schedule.name == ("automatic" if method == "autolora" else "step_decay")
    assert method != "twins" or config.method.twins_gamma == gamma
    assert config.method.trades_beta == 6
    assert config.threat_model.epsilon == 8 / 255
    assert (config.train_attack.num_steps, config.train_attack.step_size) == (10, 2 / 255)
    assert (config.train_attack.random_start, config.eval_attack.random_start) == (True, False)
    assert (config.method.lora_rank, config.method.sharpening, config.method.kl_weight_max) == (8, 1.0, 6.0)
    assert (config.data.val_fraction, config.data.val_images_min) == (0.05, 0)
    seen = (config.model.input_size, config.data.image_size, config.data.augmentation)
    assert seen == ((224, None, "crop_flip") if task.startswith("cifar") else (None, 224, "resized_crop_flip"))


def shrunken(config: ExperimentConfig, folder: str, backbone: str) -> ExperimentConfig:
    """Returns the recipe on a handful of small images with another backbone and a short attack."""
    small = None if config.data.image_size is None else 32
    return replace(
        config,
        data=replace(config.data, path=folder, image_size=small, val_fraction=0.25),
        model=replace(config.model, backbone=backbone, input_size=config.model.input_size and 32),
        train_attack=replace(config.train_attack, num_steps=1),
        compute=ComputeConfig(attack_precision="float32", train_precision="float32"),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_task(tmp_path_factory.mktemp("recipes"), train=12, test=3)


def test_a_recipe_in_l2_differs_in_the_threat_model_and_the_steps_alone() -> None:
    for name, epsilon in {"cifar10": 0.5, "dogs-resnet50-twins": 3.0, "custom": 3.0, "demo": 1.5}.items():
        config, base = recipe(f"{name}-l2"), recipe(name)
        assert (config.threat_model.norm, config.threat_model.epsilon) == ("l2", epsilon)
        differing = {"threat_model.norm", "threat_model.epsilon", "train_attack.step_size", "eval_attack.step_size"}
        assert config.differences(base).keys() == differing
        # As the robustness library's 2.5 epsilon / steps for 10 steps.
        assert config.train_attack.step_size == config.eval_attack.step_size == 2.5 * epsilon / 10


SMALL = [(paper_recipe_name(*experiment), "small_resnet") for experiment in EXPERIMENTS] + [("cub-l2", "small_resnet")]
REAL = [("cifar10", "resnet18"), ("cub-resnet50-twins", "resnet50")]


@pytest.mark.parametrize(("name", "backbone"), [*SMALL, *REAL])
def test_a_shrunken_copy_of_a_recipe_takes_a_step(name: str, backbone: str, folder: str) -> None:
    config = shrunken(recipe(name), folder, backbone)
    trainer = trainer_of(config)
    before = [value.detach().clone() for value in trainer.backbone.parameters()]
    trainer.set_loss_weights(0.5)
    terms = trainer.train_epoch()
    assert all(math.isfinite(value) for value in terms.values())
    after = list(trainer.backbone.parameters())
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert trainer.step.lr == config.optimization.lr


def test_the_names_are_told_in_a_readable_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r'mean "cub-resnet50-twins"\? Known recipes: demo, .*cub-resnet50-twins\.$'):
        recipe("cub-resnet5O-twins")
    with pytest.raises(SystemExit):
        parse_training_flags("Trains.", "demo", ["--help"])
    told = capsys.readouterr().out
    assert "-resnet50" in told
    assert told.count(" cifar100") == 1
