"""What a worker of an evaluation is told, and what it does."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from distributed_autolora.core.metrics import AccuracyCount
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.errors import UserError
from distributed_autolora.evaluation.attacks import NamedAttack
from distributed_autolora.evaluation.chunks import Chunk, Columns
from distributed_autolora.models.portable import PortableModel

if TYPE_CHECKING:
    import torch
    from torch import nn

    from distributed_autolora.data.images import ImageSource
    from distributed_autolora.data.parquet.writer import ImageTable


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What every worker of a pool needs to know.

    Attributes:
        model: the model that is judged.
        data_folder: folder or URI of the test files, reachable from every worker.
        data_digest: SHA-256 of its files.
        table_digest: of the test images and labels, from `table_digest`.
        rows: positions in the test table, in the order in which chunks count them.
        image_size: side that images are scaled and cut to; None: as they are.
        cache: folder on each node for mapped copies of large test splits; None: the system's temporary folder.
        epsilon: radius of the L-infinity ball.
        attacks: what the chunks are judged by.
        step_size: length of a PGD step; None: epsilon / 4.
    """

    model: PortableModel
    data_folder: str
    data_digest: str
    table_digest: str
    rows: tuple[int, ...]
    image_size: int | None
    cache: str | None
    epsilon: float
    attacks: tuple[NamedAttack, ...]
    step_size: float | None

    def open_images(self) -> ImageSource:
        """Opens the test images on this machine.

        Raises:
            UserError: for images that cannot be used, or that are not those that the evaluation began with.
        """
        table = open_test_split(self.data_folder, self.data_digest, self.image_size, self.cache)
        if table_digest(table) != self.table_digest:
            raise UserError(
                f"{table.where} on {os.uname().nodename} is not what the evaluation began with: give every node the "
                "same files."
            )
        return self.images_of(table)

    def images_of(self, table: ImageTable) -> ImageSource:
        """Returns the images of a table as the model sees them.

        Raises:
            UserError: for images that cannot be used so.
        """
        from distributed_autolora.data.images import ImageSource

        return ImageSource(table, channels=len(self.model.description.mean), image_size=self.image_size, resized=False)


def open_test_split(folder: str, digest: str, image_size: int | None, cache: str | None) -> ImageTable:
    """Opens a test split as training does: a large one is mapped from this node's cache.

    Raises:
        UserError: for data that cannot be used, or a cache that cannot be written.
    """
    from distributed_autolora.config import DataConfig, ExperimentConfig, ScalingConfig
    from distributed_autolora.training.task_data import open_table

    config = ExperimentConfig(data=DataConfig(image_size=image_size, digest=digest), scaling=ScalingConfig(cache=cache))
    return open_table(config, folder, "test")


def table_digest(table: ImageTable) -> str:
    """Returns the SHA-256 of the fingerprints and labels of all images, in their order."""
    digest = hashlib.sha256()
    for values in (table.fingerprints, table.labels):
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class SanityQuestion:
    """What the sanity checks look at.

    Attributes:
        rows: positions in the test table.
        accuracies: what was measured on all images that were judged.
        seed: of random starts, noise and Square.
    """

    rows: tuple[int, ...]
    accuracies: dict[str, AccuracyCount]
    seed: int


class Judge:
    """What one worker holds: the model on its device, and the test images; both are read with its first task."""

    def __init__(self, assignment: Assignment, use_gpu: bool) -> None:
        self._assignment, self._use_gpu = assignment, use_gpu
        self._threat_model = ThreatModel("linf", assignment.epsilon)

    @cached_property
    def _device(self) -> torch.device:
        import torch

        torch.set_num_threads(1)
        return torch.device("cuda" if self._use_gpu else "cpu")

    @cached_property
    def _model(self) -> nn.Module:
        return self._assignment.model.build(self._device)

    @cached_property
    def _images(self) -> ImageSource:
        return self._assignment.open_images()

    def is_ready(self) -> bool:
        """Tells that the worker has started."""
        return True

    def chunk(self, chunk: Chunk) -> tuple[Columns, float]:
        """Returns the outcome of a chunk, row, row_id and label included, and the seconds it took."""
        import numpy as np

        from distributed_autolora.evaluation.chunks import evaluate_chunk

        job, model = self._assignment, self._model
        x, y = self._batch(job.rows[chunk.start : chunk.stop])
        start = time.perf_counter()
        columns = evaluate_chunk(
            model,
            x,
            y,
            threat_model=self._threat_model,
            attacks=job.attacks,
            seed=chunk.seed,
            step_size=job.step_size,
        )
        rows = np.array(job.rows[chunk.start : chunk.stop], dtype=np.int64)
        row_ids = np.array([self._images.table.row_ids[row] for row in rows.tolist()], dtype=object)
        found = {"row": rows, "row_id": row_ids, "label": y.cpu().numpy(), **columns}
        return found, time.perf_counter() - start

    def curve(self, chunk: Chunk) -> dict[float, AccuracyCount]:
        """Returns how many images of a chunk withstand PGD at each epsilon of the curve."""
        from distributed_autolora.evaluation.curve import curve_epsilons, robustness_curve

        x, y = self._batch(self._assignment.rows[chunk.start : chunk.stop])
        epsilons = curve_epsilons(self._threat_model)
        return robustness_curve(self._model, x, y, threat_model=self._threat_model, epsilons=epsilons, seed=chunk.seed)

    def sanity(self, question: SanityQuestion) -> list[dict[str, Any]]:
        """Returns the sanity checks on some test images as JSON values."""
        from dataclasses import asdict

        from distributed_autolora.evaluation.sanity.report import check_sanity

        x, y = self._batch(question.rows)
        checks = check_sanity(
            self._model,
            x,
            y,
            threat_model=self._threat_model,
            accuracies=question.accuracies,
            seed=question.seed,
            step_size=self._assignment.step_size,
        )
        return [asdict(check) for check in checks]

    def _batch(self, rows: tuple[int, ...]) -> tuple[Any, Any]:
        import torch

        from distributed_autolora.data.augmentation import to_unit_interval

        chosen = torch.tensor(rows, dtype=torch.int64)
        images = to_unit_interval(self._images.images(chosen).to(self._device))
        return images, self._images.table.labels[chosen].to(self._device)
