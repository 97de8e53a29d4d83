"""Epochs compared on the same images: what of a difference in accuracy is more than those images' luck."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_LEVEL = 0.05


def discordant(first: Tensor, second: Tensor) -> tuple[int, int]:
    """Returns how many images only `first` got right, and how many only `second`.

    Args:
        first: bool [n], which images were right.
        second: bool [n], the same images at another time.
    """
    return int((first & ~second).sum()), int((second & ~first).sum())


def is_as_good(present: Tensor, best: Tensor) -> bool:
    """Tells whether the accuracy of `present` is at most one standard error of their difference below that of `best`.

    With b images that only the best got right and c that only the present did, the difference is (b - c) / n and
    its standard error over n paired images makes this (b - c)^2 <= b + c: McNemar's statistic is at most 1.

    Args:
        present: bool [n].
        best: bool [n], the same images, no fewer of them right.
    """
    only_best, only_present = discordant(best, present)
    return (only_best - only_present) ** 2 <= only_best + only_present


def p_value_of_being_better(first: Tensor, second: Tensor) -> float:
    """Returns the one-sided p-value of McNemar's exact test against "`first` is no better than `second`".

    Only images that one of them got right and the other wrong count; each is a fair coin under the hypothesis.

    Args:
        first: bool [n].
        second: bool [n], the same images.
    """
    only_first, only_second = discordant(first, second)
    coins = only_first + only_second
    return sum(math.comb(coins, heads) for heads in range(only_first, coins + 1)) / (1 << coins)


class PairedComparison:
    """Judges progress, and which state to keep, from the outcomes of the same images under the same attack.

    Args:
        interval: epochs of a window.
    """

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.outcomes: list[Tensor] = []
        self._best: Tensor | None = None
        self._kept: Tensor | None = None

    def add(self, outcomes: Sequence[bool] | Tensor) -> bool:
        """Takes an epoch's outcomes; tells whether its state is to be kept.

        That is the newest one that `is_as_good` as the best: the best of many epochs on few images is the luckiest.

        Args:
            outcomes: bool [n], n at least 1: which validation images withstood the attack, in row order.
        """
        present = torch.as_tensor(outcomes, dtype=torch.bool, device="cpu")
        self.outcomes.append(present)
        if self._best is None or present.sum() > self._best.sum():
            self._best = present
        is_kept = is_as_good(present, self._best)
        if is_kept:
            self._kept = present
        return is_kept

    def is_decision(self) -> bool:
        """Tells whether a window ends with this epoch that has another before it."""
        return len(self.outcomes) >= 2 * self.interval and len(self.outcomes) % self.interval == 0

    def has_risen(self) -> bool:
        """Tells whether the mean accuracy of this window is above that of the window before."""
        window = self.interval
        now, before = self.outcomes[-window:], self.outcomes[-2 * window : -window]
        return sum(int(epoch.sum()) for epoch in now) > sum(int(epoch.sum()) for epoch in before)

    def kept_is_better(self) -> bool:
        """Tells whether the kept state is credibly better than the present one, after as many looks as epochs."""
        assert self._kept is not None
        return p_value_of_being_better(self._kept, self.outcomes[-1]) < _LEVEL / len(self.outcomes)
