"""Named experiments: functions that return a complete config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from distributed_autolora.config import (
    AttackConfig,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    MethodConfig,
    ModelConfig,
    OptimizationConfig,
    ScalingConfig,
    ScheduleConfig,
    ThreatModelConfig,
)
from distributed_autolora.config_reading import nearest
from distributed_autolora.errors import UserError

FASHION_MNIST_MEAN = (0.2860,)
FASHION_MNIST_STD = (0.3530,)
_FASHION_EPSILON = 0.1


def fashion_mnist() -> ExperimentConfig:
    """The shipped task: Fashion-MNIST classes 5-9, all 2,500 training images, 40 epochs."""
    return ExperimentConfig(
        recipe="fashion-mnist",
        data=DataConfig(task="fashion-mnist-5-9", augmentation="none"),
        model=ModelConfig(backbone="small_resnet", weights="embedded", mean=FASHION_MNIST_MEAN, std=FASHION_MNIST_STD),
        threat_model=ThreatModelConfig(epsilon=_FASHION_EPSILON),
        train_attack=AttackConfig(step_size=_FASHION_EPSILON / 4),
        eval_attack=AttackConfig(step_size=_FASHION_EPSILON / 4, random_start=False),
        optimization=OptimizationConfig(epochs=40, global_batch_size=64),
    )


def demo() -> ExperimentConfig:
    """The shipped task in three minutes on two CPU cores: 1,000 images to train, 250 to validate, 20 epochs."""
    full = fashion_mnist()
    return replace(
        full,
        recipe="demo",
        data=replace(full.data, train_images=1250),
        optimization=replace(full.optimization, epochs=20),
    )


def pretrain_fashion_mnist() -> ExperimentConfig:
    """Adversarial pre-training of the shipped backbone on Fashion-MNIST classes 0-4, by Eq. 1."""
    full = fashion_mnist()
    return replace(
        full,
        recipe="pretrain-fashion-mnist",
        data=DataConfig(task="fashion-mnist-0-4"),
        model=replace(full.model, weights=None),
        method=MethodConfig(name="vanilla"),
        schedule=ScheduleConfig(name="step_decay"),
        train_attack=replace(full.train_attack, num_steps=7),
        optimization=OptimizationConfig(epochs=6, global_batch_size=128, lr=0.05, weight_decay=5e-4),
        evaluation=EvaluationConfig(linear_head=False),
    )


def custom() -> ExperimentConfig:
    """One's own images at 224 pixels on a pre-trained ResNet-18, everything else as in the paper."""
    return ExperimentConfig(
        recipe="custom",
        data=DataConfig(image_size=224, augmentation="resized_crop_flip"),
    )


def cifar10() -> ExperimentConfig:
    """The paper's CIFAR-10: 32 x 32 perturbations, up-sampled to 224 inside the model."""
    return _paper_low_resolution("cifar10")


def cifar100() -> ExperimentConfig:
    """The paper's CIFAR-100: 32 x 32 perturbations, up-sampled to 224 inside the model."""
    return _paper_low_resolution("cifar100")


def dtd() -> ExperimentConfig:
    """The paper's DTD-57, with its real 47 classes."""
    return _paper_high_resolution("dtd")


def dogs() -> ExperimentConfig:
    """The paper's DOG-120 (Stanford Dogs)."""
    return _paper_high_resolution("dogs")


def cub() -> ExperimentConfig:
    """The paper's CUB-200 (Caltech-UCSD Birds 200-2011)."""
    return _paper_high_resolution("cub")


def caltech256() -> ExperimentConfig:
    """The paper's Caltech-256, 257 classes with clutter."""
    return _paper_high_resolution("caltech256")


def _paper(data: DataConfig, model: ModelConfig) -> ExperimentConfig:
    """Section 5 of the paper: every other value is a default of the config."""
    return ExperimentConfig(
        recipe=data.task,
        data=data,
        model=model,
        evaluation=EvaluationConfig(linear_head=False),
        scaling=ScalingConfig(num_workers=1, use_gpu=True, cpus_per_worker=8),
    )


def _paper_low_resolution(task: str) -> ExperimentConfig:
    return _paper(DataConfig(task=task, val_images_min=0), ModelConfig(input_size=224))


def _paper_high_resolution(task: str) -> ExperimentConfig:
    data = DataConfig(task=task, val_images_min=0, image_size=224, augmentation="resized_crop_flip")
    return _paper(data, ModelConfig())


RECIPES: dict[str, Callable[[], ExperimentConfig]] = {
    "demo": demo,
    "fashion-mnist": fashion_mnist,
    "pretrain-fashion-mnist": pretrain_fashion_mnist,
    "custom": custom,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "dtd": dtd,
    "dogs": dogs,
    "cub": cub,
    "caltech256": caltech256,
}


def recipe(name: str) -> ExperimentConfig:
    """Returns the named experiment.

    Raises:
        UserError: for an unknown name.
    """
    if name not in RECIPES:
        raise UserError(
            f'There is no recipe "{name}".{nearest(name, list(RECIPES))} Known recipes: {", ".join(RECIPES)}.'
        )
    return RECIPES[name]()
