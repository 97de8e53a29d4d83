"""Epochs compared on the same images: what of a difference in accuracy is more than those images' luck."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_LEVEL = 0.05


def exceeds(first: Tensor, second: Tensor) -> bool:
    """Tells whether the accuracy of `first` is more than a standard error of the difference above that of `second`.

    With d_i how much more often image i was right in `first`, the mean of d over n images and the standard error of
    that mean make this sum(d) > 0 and sum(d)^2 > sum(d^2). For one epoch each it is McNemar's statistic above 1.

    Args:
        first: int64 [n], how often each image was right.
        second: int64 [n], the same images over as many epochs at another time.
    """
    difference = first - second
    total = int(difference.sum())
    return total > 0 and total**2 > int((difference**2).sum())


def p_value_of_being_better(first: Tensor, second: Tensor) -> float:
    """Returns the one-sided p-value of McNemar's exact test against "`first` is no better than `second`".

    Only images that one of them got right and the other wrong count; each is a fair coin under the hypothesis.

    Args:
        first: int64 [n], 1 for each image that was right and 0 for the others.
        second: int64 [n], the same images.
    """
    only_first, only_second = int((first > second).sum()), int((second > first).sum())
    coins = only_first + only_second
    return sum(math.comb(coins, heads) for heads in range(only_first, coins + 1)) / (1 << coins)


class PairedComparison:
    """Judges progress, and which state to keep, from the outcomes of the same images under the same attack.

    Args:
        interval: epochs of a window, between two decisions.
    """

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.outcomes: list[Tensor] = []
        self.best: Tensor | None = None
        self.kept: Tensor | None = None

    def add(self, outcomes: Sequence[bool] | Tensor) -> bool:
        """Takes an epoch's outcomes; tells whether its state is to be kept.

        That is the newest one that the best does not exceed: the best of many epochs on few images is the luckiest.

        Args:
            outcomes: bool [n], n at least 1: which validation images withstood the attack, in row order.
        """
        present = torch.as_tensor(outcomes, dtype=torch.bool, device="cpu").long()
        self.outcomes.append(present)
        if self.best is None or present.sum() > self.best.sum():
            self.best = present
        is_kept = not exceeds(self.best, present)
        if is_kept:
            self.kept = present
        return is_kept

    def keep_present(self) -> None:
        """Forgets what was kept and what was best: both are the newest state now."""
        self.best = self.kept = self.outcomes[-1]

    def is_decision(self) -> bool:
        """Tells whether a window ends with this epoch."""
        return len(self.outcomes) >= 2 * self._half and len(self.outcomes) % self.interval == 0

    def has_risen(self) -> bool:
        """Tells whether the second half of the window exceeds the first."""
        half = self._half
        later, earlier = self.outcomes[-half:], self.outcomes[-2 * half : -half]
        return exceeds(torch.stack(later).sum(0), torch.stack(earlier).sum(0))

    def kept_is_better(self) -> bool:
        """Tells whether the kept state is credibly better than the present one, after as many looks as epochs."""
        assert self.kept is not None
        return p_value_of_being_better(self.kept, self.outcomes[-1]) < _LEVEL / len(self.outcomes)

    @property
    def _half(self) -> int:
        return max(1, self.interval // 2)
