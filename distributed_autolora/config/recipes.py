"""Named experiments: functions that return a complete config."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from distributed_autolora.config import (
    AttackConfig,
    ComputeConfig,
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
from distributed_autolora.errors import UserError
from distributed_autolora.records.reader import nearest

FASHION_MNIST_MEAN = (0.2860,)
FASHION_MNIST_STD = (0.3530,)
_FASHION_EPSILON = 0.1
CIFAR100_MEAN = (0.5071, 0.4865, 0.4409)
CIFAR100_STD = (0.2673, 0.2564, 0.2762)
_PAIRED = ScheduleConfig(rule="paired")
_DETACHED = MethodConfig(soft_labels="detached")
"""Both for data that the authors did not tune their method on; docs/method.md gives the reasons."""


def fashion_mnist(recipe: str = "fashion-mnist", train_images: int | None = None, epochs: int = 40) -> ExperimentConfig:
    """The shipped task: Fashion-MNIST classes 5-9, all 2,500 training images, 40 epochs."""
    return ExperimentConfig(
        recipe=recipe,
        data=DataConfig(task="fashion-mnist-5-9", augmentation="none", train_images=train_images),
        model=ModelConfig(backbone="small_resnet", weights="embedded", mean=FASHION_MNIST_MEAN, std=FASHION_MNIST_STD),
        threat_model=ThreatModelConfig(epsilon=_FASHION_EPSILON),
        train_attack=AttackConfig(step_size=_FASHION_EPSILON / 4),
        eval_attack=AttackConfig(step_size=_FASHION_EPSILON / 4, random_start=False),
        method=_DETACHED,
        schedule=_PAIRED,
        optimization=OptimizationConfig(epochs=epochs, global_batch_size=64),
    )


def demo() -> ExperimentConfig:
    """The shipped task in some minutes on two CPU cores: 1,000 images to train, 250 to validate, 20 epochs."""
    return fashion_mnist("demo", train_images=1250, epochs=20)


def demo_study() -> ExperimentConfig:
    """One run of a study on the shipped task, as in the paper, small enough for 21 in an hour on two CPU cores."""
    own = fashion_mnist("demo-study", train_images=1000, epochs=16)
    return replace(own, method=MethodConfig(), schedule=ScheduleConfig())


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
        compute=ComputeConfig(train_precision="float32"),
    )


def pretrain_cifar100() -> ExperimentConfig:
    """Adversarial pre-training of a small backbone on CIFAR-100, by Eq. 1 and with few attack steps: for CPUs."""
    return ExperimentConfig(
        recipe="pretrain-cifar100",
        data=DataConfig(task="cifar100", val_fraction=0.0125),
        model=ModelConfig(backbone="small_resnet", mean=CIFAR100_MEAN, std=CIFAR100_STD),
        train_attack=AttackConfig(num_steps=2, step_size=5 / 255),
        method=MethodConfig(name="vanilla", trades_beta=3.0),
        schedule=ScheduleConfig(name="step_decay", decay_at=(0.75, 0.9)),
        optimization=OptimizationConfig(epochs=8, lr=0.1, weight_decay=5e-4),
        evaluation=EvaluationConfig(linear_head=False, masking_every=0),
    )


def cifar10_small() -> ExperimentConfig:
    """CIFAR-10 at its 32 pixels on the shipped backbone of CIFAR-100: 8,000 training images, 30 epochs, for CPUs."""
    pretraining = pretrain_cifar100()
    return ExperimentConfig(
        recipe="cifar10-small",
        data=DataConfig(task="cifar10", train_images=8000),
        model=replace(pretraining.model, weights="embedded-cifar100"),
        method=_DETACHED,
        schedule=_PAIRED,
        optimization=OptimizationConfig(epochs=30),
    )


def custom() -> ExperimentConfig:
    """One's own images at 224 pixels on a pre-trained ResNet-18, with rule "paired" and detached soft labels."""
    return ExperimentConfig(
        recipe="custom",
        method=_DETACHED,
        schedule=_PAIRED,
        data=DataConfig(image_size=224, augmentation="resized_crop_flip"),
    )


class Hyperparameters(NamedTuple):
    """What differs from task to task and method to method in the paper's Appendix A.1."""

    lr: float
    weight_decay: float = 1e-4
    twins_gamma: float = 1.0
    """Weight of TWINS' frozen path; no other method reads it."""


_AUTOLORA = Hyperparameters(1e-2)

PAPER_HYPERPARAMETERS: dict[str, dict[str, Hyperparameters]] = {
    "cifar10": {"autolora": _AUTOLORA, "vanilla": Hyperparameters(1e-2), "twins": Hyperparameters(1e-2)},
    "cifar100": {"autolora": _AUTOLORA, "vanilla": Hyperparameters(1e-3), "twins": Hyperparameters(1e-2)},
    "dtd": {"autolora": _AUTOLORA, "vanilla": Hyperparameters(1e-2), "twins": Hyperparameters(1e-3)},
    "dogs": {"autolora": _AUTOLORA, "vanilla": Hyperparameters(1e-3), "twins": Hyperparameters(3e-3)},
    "cub": {"autolora": _AUTOLORA, "vanilla": Hyperparameters(1e-2), "twins": Hyperparameters(1e-2, twins_gamma=3.0)},
    "caltech256": {"autolora": _AUTOLORA, "vanilla": Hyperparameters(1e-2), "twins": Hyperparameters(3e-3)},
}
"""{task: {method: hyperparameters}} of the paper's six tasks, the same for both of its backbones (Appendix A.1)."""

PAPER_BACKBONES = ("resnet18", "resnet50")
PAPER_METHODS = ("autolora", "vanilla", "twins")
_LOW_RESOLUTION = ("cifar10", "cifar100")


def paper_recipe_name(task: str, backbone: str = "resnet18", method: str = "autolora") -> str:
    """Returns the name of one of the paper's experiments: the task, then what is not ResNet-18 and AutoLoRa."""
    return "-".join([task, *[part for part in (backbone, method) if part not in ("resnet18", "autolora")]])


def paper(task: str, backbone: str = "resnet18", method: str = "autolora") -> ExperimentConfig:
    """One of the paper's experiments (section 5 and Appendix A.1); model.weights is the user's to give.

    CIFAR is perturbed at 32 x 32 pixels and up-sampled to 224 inside the model; the other tasks are cropped to 224.
    AutoLoRa moves its learning rate by the robust validation accuracy, the other methods at fixed epochs. The training
    step is the paper's, in float32. DTD-57 is "dtd" with its real 47 classes, DOG-120 is "dogs".
    """
    values = PAPER_HYPERPARAMETERS[task][method]
    small = task in _LOW_RESOLUTION
    data = DataConfig(task=task, val_images_min=0)
    return ExperimentConfig(
        recipe=paper_recipe_name(task, backbone, method),
        data=data if small else replace(data, image_size=224, augmentation="resized_crop_flip"),
        model=ModelConfig(backbone=backbone, input_size=224 if small else None),
        method=MethodConfig(name=method, twins_gamma=values.twins_gamma),
        schedule=ScheduleConfig(name="automatic" if method == "autolora" else "step_decay"),
        optimization=OptimizationConfig(lr=values.lr, weight_decay=values.weight_decay),
        evaluation=EvaluationConfig(linear_head=False),
        compute=ComputeConfig(train_precision="float32"),
        scaling=ScalingConfig(num_workers=1, use_gpu=True, cpus_per_worker=8),
    )


def in_l2(name: str) -> ExperimentConfig:
    """A recipe in the L2 threat model (not the paper's), with an epsilon for its images and steps of epsilon / 4.

    Epsilon 3 at 224 pixels is that of the robust ImageNet checkpoints in L2 (Salman et al., 2020), 0.5 at 32 pixels
    that of RobustBench's CIFAR tables; 1.5 is for the 28 x 28 grey pixels of Fashion-MNIST.
    """
    config = recipe(name)
    epsilon = 3.0 if config.data.image_size == 224 else 0.5 if config.data.task in _LOW_RESOLUTION else 1.5
    return replace(
        config,
        recipe=f"{name}-l2",
        threat_model=ThreatModelConfig(norm="l2", epsilon=epsilon),
        train_attack=replace(config.train_attack, step_size=epsilon / 4),
        eval_attack=replace(config.eval_attack, step_size=epsilon / 4),
    )


_OWN: dict[str, Callable[[], ExperimentConfig]] = {
    "demo": demo,
    "demo-study": demo_study,
    "fashion-mnist": fashion_mnist,
    "pretrain-fashion-mnist": pretrain_fashion_mnist,
    "pretrain-cifar100": pretrain_cifar100,
    "cifar10-small": cifar10_small,
    "custom": custom,
}
_PAPER: dict[str, Callable[[], ExperimentConfig]] = {
    paper_recipe_name(task, backbone, method): partial(paper, task, backbone, method)
    for task in PAPER_HYPERPARAMETERS
    for backbone in PAPER_BACKBONES
    for method in PAPER_METHODS
}
_L2: dict[str, Callable[[], ExperimentConfig]] = {
    f"{name}-l2": partial(in_l2, name) for name in ("demo", "fashion-mnist", "custom", *_PAPER)
}
RECIPES: dict[str, Callable[[], ExperimentConfig]] = _OWN | _PAPER | _L2
RECIPES_IN_WORDS = (
    f"{', '.join(_OWN)} (in the L2 norm: demo-l2, fashion-mnist-l2, custom-l2), and the paper's: "
    f"{', '.join(PAPER_HYPERPARAMETERS)} (AutoLoRa on a ResNet-18), each also with -resnet50, then -vanilla or -twins, "
    "then -l2 appended, as in cub-resnet50-twins"
)
"""All recipes in one readable line."""


def recipe(name: str) -> ExperimentConfig:
    """Returns the named experiment.

    Raises:
        UserError: for an unknown name.
    """
    if name not in RECIPES:
        raise UserError(
            f'There is no recipe "{name}".{nearest(name, list(RECIPES))} Known recipes: {RECIPES_IN_WORDS}.'
        )
    return RECIPES[name]()
