"""Accuracies as integer counts, which add and are divided once; what an evaluation found: its evaluation.json."""

from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

WORST_CASE = "worst_case"
"""Name of the result of all attacks together, beside those of single attacks."""
Status = Literal["PASS", "WARN", "FAIL"]


def pgd_name(num_steps: int, *, random_starts: int = 0, loss: str = "cross_entropy") -> str:
    """Returns the name of a PGD attack: "pgd10", "pgd10x5" (5 random starts), "pgd10-margin" (loss)."""
    starts = f"x{random_starts}" if random_starts else ""
    return f"pgd{num_steps}{starts}" + ("" if loss == "cross_entropy" else f"-{loss}")


@dataclass(frozen=True)
class AccuracyCount:
    """How many of how many images were classified correctly."""

    correct: int = 0
    total: int = 0

    def __add__(self, other: "AccuracyCount") -> "AccuracyCount":
        return AccuracyCount(self.correct + other.correct, self.total + other.total)

    @property
    def accuracy(self) -> float:
        """Share of correct images in [0, 1].

        Raises:
            ZeroDivisionError: when nothing was counted.
        """
        return self.correct / self.total


@dataclass(frozen=True)
class Accuracies:
    """Natural accuracy, and robust accuracy under one attack, on the same images."""

    natural: AccuracyCount
    robust: AccuracyCount

    def by_name(self, attack: str) -> dict[str, AccuracyCount]:
        """Returns both by the names under which they are logged: natural_accuracy, robust_accuracy/<attack>."""
        return {"natural_accuracy": self.natural, f"robust_accuracy/{attack}": self.robust}


@dataclass(frozen=True)
class AttackResult:
    """Robust accuracy under one attack: "autoattack", in tables "AutoAttack (standard)"."""

    name: str
    label: str
    robust: AccuracyCount


@dataclass(frozen=True)
class CorruptionResult:
    """Accuracy on the test images with one common corruption, of severity 1 to 5."""

    name: str
    severity: int
    correct: AccuracyCount


@dataclass(frozen=True)
class SanityCheck:
    """Result of one sanity check: the finding in one line, and its numbers (ints, floats, lists and dicts of them)."""

    name: str
    status: Status
    detail: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class CurvePoint:
    """Robust accuracy at one epsilon."""

    epsilon: float
    robust: AccuracyCount


@dataclass(frozen=True)
class Curve:
    """Robust accuracy over epsilon, and its mean when epsilon is uniform up to the largest one."""

    points: tuple[CurvePoint, ...]
    expected_robustness: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A finished evaluation of one model.

    Attributes:
        digest: SHA-256 of all that determines the outcomes.
        model_digest: SHA-256 of network and weights.
        data: folder or URI of the test images; `data_digest` is of its files.
        task: empty: unknown.
        protocol: how the task's images were split, such as "clean".
        test_images: images that were evaluated, of `test_images_available` in the test split.
        image_size: side that images were scaled and cut to; None: as they are.
        image_shape: channels, height and width.
        epsilon: largest norm of a perturbation, of pixel values in [0, 1].
        attacks: in the order in which they were asked for.
        worst_case: images that are robust to all attacks; None: there were fewer than two.
        corruptions: empty: not evaluated.
        broken_by: images by what broke them first; "natural": misclassified without an attack.
        sanity: empty: not checked.
        curve: None: not measured.
        chunk_size: images of one batch.
        seed: of attacks and subset.
        num_workers: that were asked for.
        chunk_seconds: sum over all chunks; `wall_seconds` is of the last attempt.
        package_versions: of Python and the libraries that outcomes may depend on.
    """

    digest: str
    model: str
    model_digest: str
    data: str
    data_digest: str
    task: str
    protocol: str
    class_names: tuple[str, ...]
    test_images: int
    test_images_available: int
    image_size: int | None
    image_shape: tuple[int, ...]
    norm: str
    epsilon: float
    natural: AccuracyCount
    attacks: tuple[AttackResult, ...]
    worst_case: AttackResult | None = None
    corruptions: tuple[CorruptionResult, ...] = ()
    broken_by: dict[str, int]
    sanity: tuple[SanityCheck, ...] = ()
    curve: Curve | None = None
    chunk_size: int
    seed: int
    num_workers: int
    use_gpu: bool
    chunk_seconds: float
    wall_seconds: float = 0.0
    package_versions: dict[str, str]

    @property
    def is_subset(self) -> bool:
        """Whether test images were left out."""
        return self.test_images < self.test_images_available

    def accuracies(self) -> dict[str, AccuracyCount]:
        """Returns all accuracies by the names under which they are logged."""
        return {"natural_accuracy": self.natural} | {
            f"robust_accuracy/{attack.name}": attack.robust for attack in self.results()
        }

    def corruption_accuracies(self) -> dict[str, float]:
        """Returns the mean accuracy over the severities of each corruption; empty: not evaluated."""
        names = dict.fromkeys(result.name for result in self.corruptions)
        return {name: fmean(one.correct.accuracy for one in self.corruptions if one.name == name) for name in names}

    def results(self) -> tuple[AttackResult, ...]:
        """Returns the results of all attacks, and the worst case over them as the last one."""
        return self.attacks if self.worst_case is None else (*self.attacks, self.worst_case)

    def attack(self, name: str) -> AttackResult | None:
        """Returns the result of an attack or of the worst case, None where it did not run."""
        return next((attack for attack in self.results() if attack.name == name), None)
