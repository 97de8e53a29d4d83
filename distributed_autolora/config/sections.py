"""The sections of an experiment's description: each field is a flag, a YAML key and a tracked parameter.

Fractions and pixel values live in [0, 1]. Everything here is standard library, so that reading a
config never imports torch.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Precision = Literal["auto", "float32", "bfloat16"]


def ranged(default: float | tuple[float, ...] | None, low: float, high: float = math.inf) -> Any:
    """Returns a dataclass field with a default and the smallest and largest of its values; None is allowed as well."""
    return field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which labelled images, and how they are split and augmented."""

    task: str = "custom"
    """Name of the task; "fashion-mnist-5-9" is shipped with the package."""
    path: str | None = None
    """Folder or URI (s3://..., hf://datasets/...) of train*.parquet and test*.parquet; None: the shipped task."""
    train_images: int | None = ranged(None, 2)
    """Use a stratified subset of this many images of the training file, validation included; None: all."""
    val_fraction: float = ranged(0.05, 0.001, 0.5)
    """Share of the training images held out for validation (paper, section 5: 0.05)."""
    val_images_min: int = ranged(250, 0)
    """Hold out at least this many images, but never more than a quarter; 0: the fraction alone."""
    split_seed: int = ranged(0, 0, 2**31 - 1)
    """Seed of the subset and of the stratified validation split, apart from the training seed."""
    image_size: int | None = ranged(None, 1)
    """Side of the square images that training sees, in pixels; None: the images' own (then all are equal)."""
    augmentation: Literal["none", "crop_flip", "resized_crop_flip"] = "crop_flip"
    """crop_flip: 4 pixels of zero padding, random crop, horizontal flip; resized_crop_flip: the 224-pixel tasks'."""
    digest: str | None = None
    """SHA-256 of the Parquet files; filled in when a run is created, checked by every later start."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which backbone, and what happens to an image before its first layer."""

    backbone: str = "resnet18"
    """"small_resnet", a torchvision ResNet (resnet18, resnet50, wide_resnet50_2, ...), or timm/NAME of a timm model."""
    weights: str | None = None
    """Pre-trained weights: a .safetensors or torch file or URI, or a shipped one: "embedded" (of Fashion-MNIST) or
    "embedded-cifar100"; None: random."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Per-channel mean that the model subtracts from images in [0, 1]."""
    std: tuple[float, ...] = IMAGENET_STD
    """Per-channel standard deviation that the model divides by."""
    input_size: int | None = ranged(None, 1)
    """Nearest-neighbour up-sampling inside the model, in pixels; None: none (the paper's CIFAR: 224).
    A network for images of one size, such as a ViT, is built for this size; None: for its published size."""
    weights_digest: str | None = None
    """SHA-256 of the weights file; filled in when a run is created, checked by every later start."""
    allow_pickle: bool = False
    """Execute pickled code in the weights file if need be; needs weights_digest, from whoever vouches for the file."""


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """The objective and the weights of its terms."""

    name: str = "autolora"
    """autolora: Eq. 5 with the low-rank branch; vanilla: Eq. 1; twins: Eq. 2; or one that you added."""
    soft_labels: Literal["joint", "detached"] = "joint"
    """joint: the KL term also trains its natural soft labels (authors' code); detached: no gradient flows into them."""
    head_init: Literal["random", "probing"] = "random"
    """random: the head is drawn from the seed; probing: it is fitted to adversarial training images over the
    frozen pre-trained backbone before the first step (RoLI)."""
    branch_batch_norm: Literal["shared", "own"] = "shared"
    """shared: natural and adversarial images update the same running statistics (authors' code); own: AutoLoRa's
    natural branch has its own statistics, and those of the feature extractor come from adversarial images only."""
    weight_average: Literal["none", "deployed", "teacher", "both"] = "none"
    """A moving average of feature extractor and head over about an epoch: deployed: it is validated, tested and saved;
    teacher: its predictions on natural images are the soft labels of the KL term, without gradient; both; none."""
    lora_rank: int = ranged(8, 1)
    """Rank r of the low-rank branch; its factors have r x kernel size inner dimensions."""
    lora_scope: Literal["all", "last_block"] = "all"
    """all: every convolution but the stem; last_block: the last block of each stage (what the authors' code trains)."""
    sharpening: float = ranged(1.0, 0)
    """Exponent of the natural-branch accuracy in the loss weights (alpha of Eq. 6 and 7)."""
    kl_weight_max: float = ranged(6.0, 0)
    """Largest weight of the KL term (Eq. 7)."""
    natural_weight: float | None = ranged(None, 0, 1)
    """Fixed lambda1 of AutoLoRa; None: set every epoch from the natural-branch accuracy (Eq. 6)."""
    kl_weight: float | None = ranged(None, 0)
    """Fixed lambda2 of AutoLoRa; None: set every epoch from the natural-branch accuracy (Eq. 7)."""
    trades_beta: float = ranged(6.0, 0)
    """Fixed weight of the KL term of vanilla RFT and TWINS (beta of Eq. 1)."""
    twins_gamma: float = ranged(1.0, 0)
    """Weight of the path with frozen batch-norm statistics in TWINS (gamma of Eq. 2)."""


@dataclass(frozen=True, kw_only=True)
class ThreatModelConfig:
    """What the adversary may do to an image."""

    norm: Literal["linf", "l2"] = "linf"
    """Norm of the perturbation: linf: its largest pixel value; l2: the Euclidean length of all its pixel values."""
    epsilon: float = ranged(8 / 255, 0)
    """Largest norm of a perturbation, of pixel values in [0, 1]; fractions such as 8/255 are understood."""


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """How the adversary searches: projected gradient descent."""

    num_steps: int = ranged(10, 0)
    """Number of gradient steps."""
    step_size: float = ranged(2 / 255, 0)
    """Length of a step in the norm of the threat model, of pixel values in [0, 1]."""
    random_start: bool = True
    """Start uniformly inside the threat model; False: start at the clean image."""
    loss: Literal["cross_entropy", "margin"] = "cross_entropy"
    """What it maximises; margin: the largest other logit minus the label's, which overconfidence cannot hide."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate moves."""

    name: Literal["automatic", "step_decay"] = "automatic"
    """automatic: halve on the robust validation accuracy; step_decay: x 0.1 at fixed shares of the epochs."""
    rule: Literal["released", "apgd", "paired"] = "released"
    """When the automatic rule halves: released: as the authors' code; apgd: as the attack APGD halves its step; paired:
    when a paired test on the same validation images finds no progress in a window of epochs (for few images)."""
    interval: int = ranged(4, 1)
    """Epochs between two decisions of the automatic rule."""
    min_lr: float = ranged(1e-5, 0)
    """The automatic rule stops training below this learning rate."""
    decay_at: tuple[float, ...] = ranged((1 / 2, 5 / 6), 0, 1)
    """Shares of the epochs after which step_decay lowers the learning rate to a tenth."""


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig:
    """Stochastic gradient descent."""

    epochs: int = ranged(60, 1)
    """Largest number of passes over the training images."""
    global_batch_size: int = ranged(128, 2)
    """Images per step, over all workers."""
    lr: float = ranged(0.01, 1e-12)
    """Initial learning rate."""
    momentum: float = ranged(0.9, 0, 0.999999)
    """Momentum of SGD."""
    weight_decay: float = ranged(1e-4, 0)
    """Weight decay of every trained parameter."""
    batch_norm: Literal["global", "shards"] = "global"
    """What a training step's batch norm takes its statistics over: global: all images of the global batch; shards: each
    of its shards by itself, and then workers do not wait for each other in batch norm."""
    batch_norm_shards: int | None = ranged(None, 1)
    """Shards of a global batch for batch_norm "shards", at least one a worker; best a multiple of their number."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured beside the two accuracies of the final model."""

    batch_size_per_worker: int = ranged(250, 1)
    """Images per evaluation batch of one worker; no result depends on it beyond rounding."""
    linear_head: bool = True
    """Also evaluate the untouched backbone under a linear head fitted to the training images."""
    test_split: bool = True
    """Evaluate the final model on the test split, once; False: never open it, as in the trials of a search."""
    gradient_similarity_images: int = ranged(0, 0)
    """Training images to measure the gradient similarity on after every epoch (Eq. 3 and 4); 0: do not."""
    masking_every: int = ranged(4, 0)
    """Epochs between two checks of the robust validation accuracy by a stronger attack; 0: never. Rule "paired" also
    checks its decisions, and keeps checked states only."""


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Number formats; they are part of a run's identity."""

    attack_precision: Precision = "auto"
    """Format of the network that attacks search on; auto: bfloat16 where the hardware computes it natively."""
    train_precision: Precision = "auto"
    """Format of the matrix products of a training step (bfloat16: weights and losses stay float32); auto: as above."""


@dataclass(frozen=True, kw_only=True)
class ScalingConfig:
    """Where a run computes; nothing here changes what it computes."""

    num_workers: int = ranged(2, 1)
    """Training processes, each with its own share of every global batch; 2..8: from 2 to 8, as there is room."""
    max_workers: int | None = ranged(None, 1)
    """The number of workers may change during the run, up to this; needs batch_norm "shards". None: it is fixed."""
    resize_every_s: float = ranged(60.0, 1)
    """With max_workers: seconds between two looks at whether there is room for more workers; more cost a restart."""
    use_gpu: bool = False
    """One GPU for each worker (NCCL); False: CPU workers (gloo)."""
    cpus_per_worker: int = ranged(1, 1)
    """CPUs reserved for each worker, and its number of threads."""
    wait_for_resources_s: float = ranged(600.0, 1)
    """On a cluster: seconds to wait for the workers' CPUs and GPUs before giving up."""
    collective_timeout_s: float = ranged(600.0, 1)
    """Seconds without an answer after which a worker counts as lost, and the group starts again."""
    max_failures: int = ranged(3, 0)
    """Restarts of the worker group after a worker was lost or failed; a diverged loss is not retried."""
    check_finite_every: int = ranged(20, 1)
    """Steps between two checks that the loss is finite, and whether a checkpoint is due."""
    checkpoint_every_s: float = ranged(60.0, 0)
    """Seconds between two checkpoints within an epoch, as far as the checks allow; there is one after every epoch."""
    cache: str | None = None
    """Folder on each node for memory-mapped copies of the encoded images; None: the system's temporary folder."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a run is called and where it is kept."""

    name: str | None = None
    """Name of the run; None: recipe, config digest and seed."""
    output: str | None = None
    """Folder of all runs; None: $DISTRIBUTED_AUTOLORA_HOME or ~/distributed_autolora."""
    mlflow_uri: str | None = None
    """MLflow tracking URI; None: SQLite in the output folder."""
    mlflow_experiment: str = "distributed_autolora"
    """MLflow experiment that the run is filed under."""
    system_metrics: bool = False
    """Log the CPU, memory, disk, network and GPU use of the nodes to MLflow while the run trains."""
