"""Where a run's progress goes, and when it goes there within an epoch."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from distributed_autolora.training.checkpoint import TrainingState
from distributed_autolora.training.distributed import collectives
from distributed_autolora.training.trainer import Trainer

_LEAVING_EVERY_S = 10.0
_SHOW_EVERY_S = 1.0


class Reporter(Protocol):
    """Where a run's progress goes, and where it is resumed from."""

    def latest(self) -> TrainingState | None:
        """Returns the newest checkpoint of this run, or None for a new run."""
        return None

    def report(self, state: TrainingState) -> None:
        """Takes where the run stands now, after an epoch or within one; every worker calls it."""

    def is_machine_leaving(self) -> bool:
        """Tells whether a machine of this run is about to be taken away; every worker gets the same answer."""
        return False


class NoReports(Reporter):
    """Of runs in this process that keep no checkpoints."""

    def report(self, state: TrainingState) -> None:
        pass


@dataclass(frozen=True)
class StepProgress:
    """How far an epoch is: `step` of `steps`, and the speed of all workers since the epoch began or resumed."""

    epoch: int
    step: int
    steps: int
    images_per_second: float
    seconds_per_step: float


class EpochCheckpoints:
    """Writes checkpoints after epochs and within them, after the same steps on every worker.

    Whether one is due is asked every `scaling.check_finite_every` steps, where the workers wait for each other
    anyway: when the first worker's clock says that `scaling.checkpoint_every_s` have passed, and at once when a
    machine is about to be taken away.
    """

    def __init__(
        self, trainer: Trainer, reporter: Reporter, on_step: Callable[[StepProgress], None] | None = None
    ) -> None:
        self._trainer, self._reporter = trainer, reporter
        self._on_step, self._began, self._shown = on_step, (0, 0, 0.0), 0.0
        self._was_leaving = False
        self._written = time.monotonic()

    def write(self) -> None:
        """Writes one now; every worker calls it."""
        self._reporter.report(self._trainer.state())
        self._written = time.monotonic()

    def after_step(self) -> None:
        """Writes one if it is due; every worker calls it after each step."""
        if self._on_step is not None and collectives.rank() == 0:
            self._show(self._on_step)
        scaling = self._trainer.config.scaling
        if self._trainer.progress.step % scaling.check_finite_every == 0 and self._is_due(scaling.checkpoint_every_s):
            self.write()

    def _show(self, on_step: Callable[[StepProgress], None]) -> None:
        trainer, now = self._trainer, time.monotonic()
        epoch, step, size = (
            len(trainer.history) + 1,
            trainer.progress.step,
            trainer.config.optimization.global_batch_size,
        )
        if self._began[0] != epoch:
            self._began = epoch, step, now
        _, first, start = self._began
        if step > first and now - self._shown >= _SHOW_EVERY_S:
            self._shown = now
            steps = math.ceil(len(trainer.data.split.train) / size)
            each = (now - start) / (step - first)
            on_step(StepProgress(epoch, step, steps, size / each, each))

    def _is_due(self, every_s: float) -> bool:
        is_leaving = self._reporter.is_machine_leaving()
        is_news, self._was_leaving = is_leaving and not self._was_leaving, is_leaving
        limit = min(every_s, _LEAVING_EVERY_S) if is_leaving else every_s
        is_due = is_news or time.monotonic() - self._written >= limit
        shared = torch.tensor([float(is_due)], device=self._trainer.device)
        collectives.copy_from_first(shared)
        return bool(shared.item())
