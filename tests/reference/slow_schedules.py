"""The automatic learning rate, replayed from its whole history of robust accuracies at every epoch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SlowDecision:
    """What happens at the end of one epoch; `best_epoch` counts from 1."""

    lr: float
    halved: bool
    improved: bool
    stop: bool
    best_epoch: int


def slow_halving(
    robust_accuracies: list[float], *, initial_lr: float, interval: int, rule: str, min_lr: float
) -> list[SlowDecision]:
    """Returns a decision for every epoch until training stops.

    released: condition 2 asks only whether the best has improved since the last checkpoint.
    apgd: condition 2 holds only if the learning rate was not halved at the last checkpoint.
    Condition 1 is the same: fewer than three quarters of the steps of the window went up.
    """
    checkpoints = [number * interval for number in range(1000)]
    best_at_checkpoint: dict[int, float] = {}
    halved_at_checkpoint = {0: True}
    lr, best, best_epoch, j = initial_lr, -1.0, 0, 1
    decisions = []
    for k, accuracy in enumerate(robust_accuracies):
        improved = accuracy > best
        if improved:
            best, best_epoch = accuracy, k + 1
        halved = False
        if k == checkpoints[j]:
            start = checkpoints[j - 1]
            increases = sum(robust_accuracies[i + 1] > robust_accuracies[i] for i in range(start, k))
            best_at_checkpoint[j] = best
            too_few = increases < 0.75 * (k - start)
            no_new_best = j >= 2 and best_at_checkpoint[j] == best_at_checkpoint[j - 1]
            if rule == "apgd":
                no_new_best = no_new_best and not halved_at_checkpoint[j - 1]
            halved = too_few or no_new_best
            halved_at_checkpoint[j] = halved
            if halved:
                lr = lr / 2
            j += 1
        decisions.append(SlowDecision(lr, halved, improved, lr < min_lr, best_epoch))
        if lr < min_lr:
            break
    return decisions
