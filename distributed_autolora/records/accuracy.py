"""Accuracies as integer counts: counts add, and are divided once."""

from dataclasses import dataclass


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
