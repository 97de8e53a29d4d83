"""One pass over the training images."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from distributed_autolora.core.objectives import LossTerms
from distributed_autolora.errors import TrainingDivergedError
from distributed_autolora.training.distributed import collectives


class PhaseSeconds:
    """Seconds spent by phase. On a GPU, where kernels run behind the host, phases shift into each other."""

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self.seconds: dict[str, float] = dict(seconds or {})

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the block's wall-clock time to the phase `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class LossSums:
    """Sums of the loss terms over the rows of an epoch, kept on the device.

    They are checked to be finite every `check_every` steps; each check costs one host synchronisation.
    """

    def __init__(self, check_every: int, where: str) -> None:
        self._check_every, self._where = check_every, where
        self._names: list[str] = []
        self._sums: Tensor | None = None
        self._rows = self._steps = 0

    def add(self, terms: LossTerms, denominator: float, global_rows: int) -> None:
        """Adds one step's terms, which are this worker's sums divided by `denominator`.

        Raises:
            TrainingDivergedError: on every worker alike, when the sums are no longer finite.
        """
        parts = torch.stack([part.detach() for part in terms.parts.values()]).double() * denominator
        self._names = list(terms.parts)
        self._sums = parts if self._sums is None else self._sums + parts
        self._rows += global_rows
        self._steps += 1
        if self._steps % self._check_every == 0:
            self._means()

    def state(self) -> dict[str, Any]:
        """Returns the sums of every worker, exactly; every worker calls it."""
        assert self._sums is not None
        sums = collectives.gather_rows(self._sums[None]).tolist()
        return {"names": self._names, "sums": sums, "rows": self._rows, "steps": self._steps}

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Resumes from what `state` returned; with another number of workers the first takes the sum of all."""
        self._names, self._rows, self._steps = list(state["names"]), state["rows"], state["steps"]
        sums = torch.tensor(state["sums"], dtype=torch.float64, device=device)
        if len(sums) == collectives.world_size():
            self._sums = sums[collectives.rank()]
        else:
            self._sums = sums.sum(0) * (collectives.rank() == 0)

    def means(self) -> dict[str, float]:
        """Returns {"total": ..., term: ...}: means over the rows of all workers so far.

        Raises:
            TrainingDivergedError: when one is not finite.
        """
        means = dict(zip(self._names, self._means(), strict=True))
        return {"total": sum(means.values()), **means}

    def _means(self) -> list[float]:
        assert self._sums is not None
        means = (collectives.sum_over_workers(self._sums) / self._rows).tolist()
        if not all(abs(mean) < float("inf") for mean in means):
            values = ", ".join(f"{name} {mean}" for name, mean in zip(self._names, means, strict=True))
            raise TrainingDivergedError(
                f"The loss is no longer finite in {self._where}, within the {self._check_every} steps up to "
                f"step {self._steps} ({values}). Lower optimization.lr or train_attack.step_size."
            )
        return list(means)


class EpochProgress:
    """What an epoch has done so far: for its record, and for a run that resumes within it."""

    def __init__(self, check_every: int, where: str) -> None:
        self.step = 0
        self.natural_branch_accuracy: float | None = None
        self.sums, self.timer, self.seconds = LossSums(check_every, where), PhaseSeconds(), 0.0
        self._began = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Wall-clock seconds of the epoch, without those that a lost process took with it."""
        return self.seconds + time.perf_counter() - self._began

    def state(self) -> dict[str, Any]:
        """Returns JSON values, the same on every worker but for the seconds; every worker calls it."""
        return {
            "step": self.step,
            "natural_branch_accuracy": self.natural_branch_accuracy,
            "sums": self.sums.state(),
            "seconds": {**self.timer.seconds},
            "elapsed": self.elapsed,
        }

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Resumes from what `state` returned, in a progress that was just made."""
        self.step, self.natural_branch_accuracy = state["step"], state["natural_branch_accuracy"]
        self.sums.load(state["sums"], device)
        self.timer, self.seconds = PhaseSeconds(state["seconds"]), state["elapsed"]
