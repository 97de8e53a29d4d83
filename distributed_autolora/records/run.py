"""What a finished run found: the content of its result.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from distributed_autolora.records.accuracy import Accuracies
from distributed_autolora.records.reader import FORMAT, StrictReader, without_format


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What training and final evaluation found.

    Attributes:
        stopped_epoch: epochs that were run.
        best_epoch: the epoch whose weights are deployed.
        class_names: of the task.
        image_shape: channels, height and width that the network takes.
        train_images: images that were trained on; so `val_images`, `test_images`.
        test_images: None: the test split was not opened.
        split_digest: SHA-256 of which images are for training and which for validation.
        task_card: what the data files say about the task.
        attack: name of the evaluation attack, such as "pgd10".
        epsilon: largest perturbation of a pixel value in [0, 1].
        val: validation accuracies of the chosen epoch.
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

    @property
    def num_classes(self) -> int:
        """Number of classes of the task."""
        return len(self.class_names)


@dataclass(frozen=True, kw_only=True)
class MaskingSummary:
    """What all checks by a stronger attack found.

    Attributes:
        checks: number of checks.
        images: validation images of each.
        epoch: of the check nearest to the chosen epoch, the earlier of two.
        robust_accuracy_stronger: accuracy under both attacks in that epoch.
        gap: gradient-masking gap in that epoch.
        warns_from: smallest gap at which so many images warn.
        largest_gap: of all checks.
        largest_gap_epoch: its epoch.
        warned_epochs: epochs whose check warned.
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


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run cost, start-up and final evaluation left out.

    Attributes:
        seconds: sum of the epochs' wall-clock seconds.
        worker_seconds: the same, each epoch times its workers.
        forward_passes: images passed forward through the network by all workers.
        backward_passes: the same, backward.
    """

    seconds: float
    worker_seconds: float
    forward_passes: int
    backward_passes: int


@dataclass(frozen=True)
class TrackedRun:
    """An MLflow run."""

    uri: str
    run_id: str


@dataclass(frozen=True, kw_only=True)
class RunResult(RunSummary):
    """A finished run.

    Attributes:
        name: of the run.
        recipe: named experiment that it came from.
        config_digest: SHA-256 of all that determines the numbers but the seed.
        method: name of the training objective.
        schedule: name of the learning-rate schedule.
        rule: of the automatic schedule; None for another one.
        masking: None: not checked.
        mlflow: where it is tracked.
        folder: of the run.
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


def result_to_json(result: RunResult) -> dict[str, Any]:
    """Returns JSON values for `result_from_json`."""
    return {"format": FORMAT, **asdict(result)}


def result_from_json(values: Any, source: str) -> RunResult:
    """Returns the result of a run.

    Args:
        values: what `result_to_json` returned.
        source: the file that they were read from, for messages.

    Raises:
        UserError: for values of version 0.1, or damaged ones.
    """
    result: RunResult = StrictReader(source).read(RunResult, without_format(values, source))
    return result
