"""What one epoch of a run did and measured."""

from dataclasses import dataclass
from functools import partial

from distributed_autolora.records.evaluation import AccuracyCount
from distributed_autolora.records.reader import list_from_json, list_to_json


@dataclass(frozen=True)
class MaskingCheck:
    """Two stronger attacks on some validation images: does the evaluation attack overlook much?

    Attributes:
        images: images that were attacked, at least 1; the same in all epochs of a run.
        robust: of these, robust to the evaluation attack and to the stronger ones.
        broken: of these, robust to the evaluation attack and broken by a stronger search on the same loss.
        broken_by_loss: of these, robust to both of those and broken by a search on another loss; None: a record of an
            earlier version, whose one stronger attack differed in loss and search: all that it broke is in `broken`.
    """

    images: int
    robust: int
    broken: int
    broken_by_loss: int | None = None

    @property
    def robust_accuracy(self) -> float:
        """Accuracy on these images under all attacks."""
        return self.robust / self.images

    @property
    def gap(self) -> float:
        """Share of the images that only the stronger search on the same loss breaks: the gradient-masking gap."""
        return self.broken / self.images

    @property
    def loss_gap(self) -> float | None:
        """Share of the images that only the other loss breaks."""
        return None if self.broken_by_loss is None else self.broken_by_loss / self.images


@dataclass(frozen=True)
class GradientSimilarity:
    """Mean cosine between the gradients of the natural and the adversarial objective (Eq. 3 and 4), in [-1, 1]."""

    by_image: float
    by_batch: float


@dataclass(frozen=True)
class Passes:
    """Images passed through the network; an image counts once a pass."""

    forward: int
    backward: int

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(self.forward + other.forward, self.backward + other.backward)


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch; its measurements are of the weights after its steps, before the schedule restored any others.

    Attributes:
        natural_weight: lambda1 of its steps; None: the method has none. So with `kl_weight`, lambda2.
        natural_branch: accuracy of backbone + low-rank branch on the training images; None: not needed.
        fosc: mean first-order stationarity of the validation images under attack; None: an earlier version's record.
        masking: None: not checked in this epoch.
        gradient_similarity: None: not asked for.
        best_epoch: the epoch chosen so far, whose weights are kept.
        best_robust_accuracy: robust validation accuracy that the schedule counts as the best so far.
        restored_epoch: the epoch whose weights the next one starts from; None: it continues from this one's.
        stopped: this was the last epoch: the learning rate is below its minimum.
        images_per_second: training images over the seconds of data, attack and step.
        epoch_seconds: wall-clock seconds, validation included.
    """

    epoch: int
    lr: float
    natural_weight: float | None = None
    kl_weight: float | None = None
    natural_branch: AccuracyCount | None = None
    attack: str
    natural: AccuracyCount
    robust: AccuracyCount
    fosc: float | None = None
    masking: MaskingCheck | None = None
    gradient_similarity: GradientSimilarity | None = None
    next_lr: float
    best_epoch: int
    best_robust_accuracy: float
    halved: bool
    restored_epoch: int | None
    stopped: bool
    losses: dict[str, float]
    images_per_second: float
    epoch_seconds: float
    phase_seconds: dict[str, float]
    num_workers: int
    passes: Passes

    @property
    def restored(self) -> bool:
        """Whether the next epoch starts from the weights of an earlier one."""
        return self.restored_epoch is not None

    def metrics(self) -> dict[str, float]:
        """Returns the flat numbers that are logged, by their names (docs/metrics.md); what was not measured is absent.

        Integers stay integers.
        """
        found: dict[str, float | None] = {
            "epoch": self.epoch,
            "lr": self.lr,
            "natural_weight": self.natural_weight,
            "kl_weight": self.kl_weight,
            "natural_branch_accuracy": None if self.natural_branch is None else self.natural_branch.accuracy,
            "val/natural_accuracy": self.natural.accuracy,
            f"val/robust_accuracy/{self.attack}": self.robust.accuracy,
            "val/fosc": self.fosc,
            "next_lr": self.next_lr,
            f"best_val/robust_accuracy/{self.attack}": self.best_robust_accuracy,
            "best_epoch": self.best_epoch,
            "halved": int(self.halved),
            "restored": int(self.restored),
            "restored_epoch": self.restored_epoch,
            "stopped": int(self.stopped),
            **{f"train/loss/{name}": loss for name, loss in self.losses.items()},
            "images_per_second": self.images_per_second,
            "seconds/epoch": self.epoch_seconds,
            **{f"seconds/{phase}": seconds for phase, seconds in self.phase_seconds.items()},
            "num_workers": self.num_workers,
            "passes/forward": self.passes.forward,
            "passes/backward": self.passes.backward,
        }
        if (check := self.masking) is not None:
            found |= {
                "val/robust_accuracy_stronger": check.robust_accuracy,
                "val/masking_gap": check.gap,
                "val/loss_gap": check.loss_gap,
                "val/masking_images": check.images,
            }
        if (similarity := self.gradient_similarity) is not None:
            found |= {"gradient_similarity": similarity.by_image, "gradient_similarity/batch": similarity.by_batch}
        return {name: number for name, number in found.items() if number is not None}


history_to_json = partial(list_to_json, "epochs")
history_from_json = partial(list_from_json, EpochRecord, "epochs")
