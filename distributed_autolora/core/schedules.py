"""Schedules of the learning rate and the loss weights, as pure state machines."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Self

from torch import Tensor

from distributed_autolora.core.paired_comparison import PairedComparison, StrongerCheck

RULES = ("released", "apgd", "paired")
_INCREASE_SHARE = 0.75
_DECAY_FACTOR = 0.1


@dataclass(frozen=True)
class LossWeights:
    """lambda1 (`natural_weight`) and lambda2 (`kl_weight`) of Eq. 5."""

    natural_weight: float
    kl_weight: float

    @classmethod
    def from_natural_accuracy(cls, accuracy: float, alpha: float = 1.0, kl_weight_max: float = 6.0) -> Self:
        """Weighs the losses by the accuracy of the low-rank branch on the training images, in [0, 1] (Eq. 6 and 7)."""
        sharpened = accuracy**alpha
        return cls(natural_weight=1 - sharpened, kl_weight=kl_weight_max * sharpened)


@dataclass(frozen=True)
class Decision:
    """What follows from one epoch's robust validation accuracy."""

    lr: float
    """Learning rate of the next epoch."""
    improved: bool
    """Keep this epoch's state: it is the best so far, or as good as the best."""
    halved: bool = False
    restore_best: bool = False
    """Resume from the state that was kept."""
    stop: bool = False


class RobustAccuracyHalving:
    """The automatic learning rate: halve when robust validation accuracy stops rising (section 4.2).

    A decision falls after epoch interval + 1, 2 interval + 1, ... It halves when fewer than 3/4 of the
    last `interval` changes were strict increases (condition 1), or else when the window brought no new best
    (condition 2). Condition 2 never holds at the first decision; under "apgd" it also needs that the
    previous decision did not halve, which the released code intends and does not do. Training stops below `min_lr`.

    Rule "paired", which is not the paper's, is for few validation images (`PairedComparison`). It halves after epoch
    interval, 2 interval, ... if the second half of the window does not exceed the first, keeps the newest state that is
    as good as the best, and restores it only if it is credibly better. If states are checked by a stronger attack, only
    checked ones are kept, and images that it breaks count as failures.

    Raises:
        ValueError: for a rule that is not in `RULES`.
    """

    def __init__(
        self, initial_lr: float = 0.01, interval: int = 4, rule: str = "released", min_lr: float = 1e-5
    ) -> None:
        if rule not in RULES:
            raise ValueError(f'rule is "{rule}": it must be one of {RULES}')
        self.lr = initial_lr
        self.interval = interval
        self.rule = rule
        self.min_lr = min_lr
        self.history: list[float] = []
        self.best = -1.0
        self._best_at_decision: float | None = None
        self._halved_at_decision = True
        self._paired = PairedComparison(interval)

    def step(
        self,
        robust_accuracy: float,
        outcomes: Sequence[bool] | Tensor | None = None,
        check: StrongerCheck | None = None,
    ) -> Decision:
        """Takes the validation results of an epoch and decides about the next one.

        Args:
            outcomes: bool [n], whether each validation image was robust to the attack; needed by rule "paired".
            check: the result of a stronger attack on some of them; only used by rule "paired".

        Raises:
            ValueError: for the rule "paired" without outcomes.
        """
        self.history.append(robust_accuracy)
        if self.rule == "paired":
            if outcomes is None:
                raise ValueError('rule "paired" compares images: give the outcome of each validation image')
            improved = self._paired.add(outcomes, check)
            self.best = robust_accuracy if improved else self.best
            halved = self._paired.is_decision() and not self._paired.has_risen()
            restore = halved and self._paired.kept_is_better()
        else:
            improved = robust_accuracy > self.best
            self.best = max(self.best, robust_accuracy)
            restore = halved = self._is_decision() and self._decide()
        if halved:
            self.lr /= 2
        return Decision(lr=self.lr, improved=improved, halved=halved, restore_best=restore, stop=self.lr < self.min_lr)

    def _is_decision(self) -> bool:
        past = len(self.history) - 1
        return past > 0 and past % self.interval == 0

    def _decide(self) -> bool:
        window = self.history[-self.interval - 1 :]
        increases = sum(later > earlier for earlier, later in pairwise(window))
        too_few = increases < _INCREASE_SHARE * self.interval
        stalled = self.best == self._best_at_decision
        if self.rule == "apgd" and self._halved_at_decision:
            stalled = False
        self._best_at_decision = self.best
        self._halved_at_decision = too_few or stalled
        return self._halved_at_decision


@dataclass
class StepDecay:
    """The baselines' schedule: the learning rate times 0.1 at fixed shares of the epochs, the paper's by default."""

    initial_lr: float
    epochs: int
    decay_at: Sequence[float] = (1 / 2, 5 / 6)
    history: list[float] = field(default_factory=list, init=False)
    best: float = field(default=-1.0, init=False)

    def step(
        self,
        robust_accuracy: float,
        outcomes: Sequence[bool] | Tensor | None = None,
        check: StrongerCheck | None = None,
    ) -> Decision:
        """Takes the robust validation accuracy after an epoch; only the choice of the epoch depends on it."""
        self.history.append(robust_accuracy)
        improved = robust_accuracy > self.best
        self.best = max(self.best, robust_accuracy)
        decays = sum(len(self.history) >= round(share * self.epochs) for share in self.decay_at)
        return Decision(lr=self.initial_lr * _DECAY_FACTOR**decays, improved=improved)
