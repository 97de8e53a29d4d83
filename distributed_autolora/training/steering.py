"""The learning-rate schedule of a run, and the validation outcomes by image that it is replayed from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.core.paired_comparison import StrongerCheck
from distributed_autolora.core.schedules import Decision
from distributed_autolora.records import EpochRecord
from distributed_autolora.training.evaluation import Validation
from distributed_autolora.training.masking_check import CheckResult
from distributed_autolora.training.methods.registry import build_schedule


class Steering:
    """A schedule that can be saved and replayed."""

    def __init__(self, config: ExperimentConfig) -> None:
        self._schedule = build_schedule(config)
        self._outcomes: list[Tensor] = []
        self._newly_broken: list[Tensor] = []

    @property
    def best(self) -> float:
        """Robust validation accuracy that the schedule counts as the best so far."""
        return self._schedule.best

    @property
    def outcomes(self) -> Tensor:
        """bool [epochs, validation images]: robust to the evaluation attack after each epoch."""
        return _stacked(self._outcomes)

    @property
    def newly_broken(self) -> Tensor:
        """bool [epochs, validation images]: of these, broken by the stronger attack of a check."""
        return _stacked(self._newly_broken)

    def decide(self, found: Validation, check: CheckResult | None) -> Decision:
        """Takes an epoch's validation, and its check if there was one, and decides about the next epoch."""
        return self._schedule.step(found.robust.accuracy, found.outcomes, None if check is None else check.by_image)

    def remember(self, found: Validation, check: CheckResult | None) -> None:
        """Keeps what was found by image."""
        self._outcomes.append(found.outcomes)
        self._newly_broken.append(torch.zeros_like(found.outcomes) if check is None else check.by_image.newly_broken)

    def replay(self, history: Sequence[EpochRecord], outcomes: Tensor, newly_broken: Tensor) -> None:
        """Takes all decisions of a saved run once more."""
        self._outcomes, self._newly_broken = list(outcomes), list(newly_broken)
        for record, robust, broken in zip(history, self._outcomes, self._newly_broken, strict=True):
            check = None if record.masking is None else StrongerCheck(broken, record.masking.images)
            self._schedule.step(record.robust.accuracy, robust, check)


def _stacked(epochs: list[Tensor]) -> Tensor:
    return torch.stack(epochs) if epochs else torch.empty((0, 0), dtype=torch.bool)
