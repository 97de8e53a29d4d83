"""Paired (McNemar) comparison of epochs on the same validation images."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

_LEVEL = 0.05


@dataclass(frozen=True)
class StrongerCheck:
    """The result of a stronger attack on some of the validation images."""

    newly_broken: Tensor
    """bool [n] over all validation images in row order: robust to the run's own attack only."""
    images: int
    """Number of the n that were attacked, at least 1; the same images in all checks of a run."""


def exceeds(first: Tensor, second: Tensor, standard_errors: float = 1.0) -> bool:
    """Tells whether the mean of `first` is more than `standard_errors` of the difference above that of `second`.

    With d = first - second this is sum(d) > 0 and sum(d)^2 > standard_errors^2 sum(d^2): the variance is that of no
    difference. For right (1) and wrong (0) it is McNemar's statistic. Both hold an int64 score of each image, [n].
    """
    difference = first - second
    total = int(difference.sum())
    return total > 0 and total**2 > standard_errors**2 * int((difference**2).sum())


class PairedComparison:
    """Decides on progress, and which state to keep, from the outcomes of the same images under the same attack."""

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.outcomes: list[Tensor] = []
        self._present: Tensor | None = None
        self._best: Tensor | None = None
        self._kept: Tensor | None = None
        self._has_checked = False

    def add(self, outcomes: Sequence[bool] | Tensor, check: StrongerCheck | None = None) -> bool:
        """Takes an epoch's outcomes; tells whether its state is to be kept.

        The newest state that the best does not exceed is kept: the best of many epochs on few images is best by chance.
        Once a checked state was kept, only checked ones are. Failures under the stronger attack are weighted
        n / checked, so that the mean estimates the accuracy under both attacks. A first check says nothing about the
        states before it, so it does not replace the kept state by a credibly worse one.

        Args:
            outcomes: bool [n], n at least 1: whether each validation image was robust to the attack, in row order.
            check: the result of a stronger attack on this state.
        """
        robust = torch.as_tensor(outcomes, dtype=torch.bool, device="cpu").long()
        self.outcomes.append(robust)
        is_first_check = check is not None and not self._has_checked
        if is_first_check and self._kept is not None and self._is_credibly_better(self._kept, robust):
            check = None
        self._present = None
        if check is None and self._has_checked:
            return False
        score = robust if check is None else check.images * robust - len(robust) * check.newly_broken.cpu().long()
        if self._best is None or (check is not None and not self._has_checked) or score.sum() > self._best.sum():
            self._best = score
        self._has_checked = check is not None
        self._present = score
        is_kept = not exceeds(self._best, score)
        if is_kept:
            self._kept = score
        return is_kept

    def is_decision(self) -> bool:
        """Tells whether a window ends with this epoch."""
        return len(self.outcomes) >= 2 * self._half and len(self.outcomes) % self.interval == 0

    def has_risen(self) -> bool:
        """Tells whether the second half of the window exceeds the first."""
        half = self._half
        later, earlier = self.outcomes[-half:], self.outcomes[-2 * half : -half]
        return exceeds(torch.stack(later).sum(0), torch.stack(earlier).sum(0))

    def kept_is_better(self) -> bool:
        """Tells whether the kept state is credibly better than the newest one, corrected for one comparison an epoch.

        A newest state that was not checked is not compared with a checked one.
        """
        assert self._kept is not None
        return self._present is not None and self._is_credibly_better(self._kept, self._present)

    def _is_credibly_better(self, first: Tensor, second: Tensor) -> bool:
        return exceeds(first, second, NormalDist().inv_cdf(1 - _LEVEL / len(self.outcomes)))

    @property
    def _half(self) -> int:
        return max(1, self.interval // 2)
