"""One pass over the training images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from distributed_autolora.core.objectives import LossTerms
from distributed_autolora.errors import TrainingDivergedError
from distributed_autolora.training import distributed


class PhaseSeconds:
    """Seconds spent by phase. On a GPU, where kernels run behind the host, phases shift into each other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

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

    Args:
        check_every: steps between two checks for a non-finite loss; each costs one host synchronisation.
        where: "epoch 3", for the message.
    """

    def __init__(self, check_every: int, where: str) -> None:
        self._check_every, self._where = check_every, where
        self._names: list[str] = []
        self._sums: Tensor | None = None
        self._rows = 0
        self._steps = 0

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

    def means(self) -> dict[str, float]:
        """Returns {"total": ..., term: ...}: means over the rows of all workers so far.

        Raises:
            TrainingDivergedError: when one is not finite.
        """
        means = dict(zip(self._names, self._means(), strict=True))
        return {"total": sum(means.values()), **means}

    def _means(self) -> list[float]:
        assert self._sums is not None
        means = (distributed.sum_over_workers(self._sums) / self._rows).tolist()
        if not all(abs(mean) < float("inf") for mean in means):
            values = ", ".join(f"{name} {mean}" for name, mean in zip(self._names, means, strict=True))
            raise TrainingDivergedError(
                f"The loss is no longer finite in {self._where}, within the {self._check_every} steps up to "
                f"step {self._steps} ({values}). Lower optimization.lr or train_attack.step_size."
            )
        return list(means)
