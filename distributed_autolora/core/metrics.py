"""Integer counts that add; they are divided once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class AccuracyCount:
    """How many of how many rows were classified correctly."""

    correct: int = 0
    total: int = 0

    def __add__(self, other: AccuracyCount) -> AccuracyCount:
        return AccuracyCount(self.correct + other.correct, self.total + other.total)

    @property
    def accuracy(self) -> float:
        """The share of correct rows in [0, 1].

        Raises:
            ZeroDivisionError: when nothing was counted.
        """
        return self.correct / self.total


def count_correct(logits: Tensor, y: Tensor) -> AccuracyCount:
    """Counts the rows of [n, classes] logits whose largest entry is the label in `y` [n]."""
    return AccuracyCount(int((logits.argmax(1) == y).sum()), len(y))
