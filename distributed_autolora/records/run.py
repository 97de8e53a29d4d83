"""What a finished run found: the content of its result.json."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distributed_autolora.records.epoch import EpochRecord
from distributed_autolora.records.evaluation import Accuracies


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What training and final evaluation found.

    Attributes:
        test_images: None: the test split was not opened.
        epsilon: largest norm of a perturbation, of pixel values in [0, 1].
        norm: of the threat model.
        test: of the deployed model; None: the test split was not opened.
        linear_head: of the untouched backbone under a linear head; None: not measured.
    """

    stopped_epoch: int
    best_epoch: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    train_images: int
    val_images: int
    test_images: int | None
    split_digest: str
    task_card: dict[str, Any]
    attack: str
    epsilon: float
    val: Accuracies
    test: Accuracies | None
    linear_head: Accuracies | None
    norm: str = "linf"

    @property
    def num_classes(self) -> int:
        """Number of classes of the task."""
        return len(self.class_names)


@dataclass(frozen=True, kw_only=True)
class MaskingSummary:
    """What all checks by the stronger attacks found.

    Attributes:
        epoch: of the check nearest to the chosen epoch, the earlier of two.
        robust_accuracy_stronger: accuracy under all attacks in that epoch.
        gap: share that only a stronger search on the same loss breaks, in that epoch.
        loss_gap: share that only another loss breaks, in that epoch; None: not measured, by an earlier version.
        warns_from: smallest gap at which so many images warn.
    """

    checks: int
    images: int
    epoch: int
    robust_accuracy_stronger: float
    gap: float
    warns_from: float
    largest_gap: float
    largest_gap_epoch: int
    warned_epochs: tuple[int, ...]
    loss_gap: float | None = None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run cost, start-up and final evaluation left out.

    Attributes:
        worker_seconds: the same, each epoch times its workers.
    """

    seconds: float
    worker_seconds: float
    forward_passes: int
    backward_passes: int


def total_cost(history: Sequence[EpochRecord]) -> Cost:
    """Returns a run's cost, a measurement of gradient similarity included in the seconds only."""
    return Cost(
        seconds=sum(record.epoch_seconds for record in history),
        worker_seconds=sum(record.epoch_seconds * record.num_workers for record in history),
        forward_passes=sum(record.passes.forward for record in history),
        backward_passes=sum(record.passes.backward for record in history),
    )


@dataclass(frozen=True)
class TrackedRun:
    """An MLflow run."""

    uri: str
    run_id: str


@dataclass(frozen=True, kw_only=True)
class RunResult(RunSummary):
    """A finished run.

    Attributes:
        rule: of the automatic schedule; None for another one.
        masking: None: not checked.
        tracked: whether MLflow has all of it.
    """

    name: str
    recipe: str
    seed: int
    config_digest: str
    method: str
    task: str
    backbone: str
    schedule: str
    rule: str | None
    masking: MaskingSummary | None
    cost: Cost
    mlflow: TrackedRun
    folder: str
    tracked: bool = False
