"""What a worker of an evaluation is given, and what it does."""

import hashlib
import os
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distributed_autolora.config import DataConfig, ExperimentConfig, ScalingConfig
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.data.augmentation import to_unit_interval
from distributed_autolora.data.class_names import relabelled
from distributed_autolora.data.images import ImageSource
from distributed_autolora.data.parquet.reader import ImageTable
from distributed_autolora.errors import UserError
from distributed_autolora.evaluation.attacks import NamedAttack
from distributed_autolora.evaluation.chunks import Chunk, Columns, cut, evaluate_chunk
from distributed_autolora.evaluation.corruptions import Corruptions
from distributed_autolora.evaluation.curve import curve_epsilons, robustness_curve
from distributed_autolora.evaluation.sanity.report import check_sanity
from distributed_autolora.models.portable import PortableModel
from distributed_autolora.orchestration.evaluations.request import EvaluationRequest
from distributed_autolora.orchestration.evaluations.transfer import AdversarialFile
from distributed_autolora.records import AccuracyCount, SanityCheck
from distributed_autolora.training.task_data import open_table


@dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """One model, test images and attacks.

    Attributes:
        data_folder: folder or URI of the test files, reachable from every worker; `data_digest` is of these files.
        table_digest: of the test images and labels, from `table_digest`.
        rows: positions in the test table, in the order in which chunks count them.
        image_size: side that images are scaled and cut to; None: as they are.
        cache: folder on each node for mapped copies of large test splits; None: the system's temporary folder.
        step_size: length of a PGD step; None: epsilon / 4.
        surrogate: where the attack "transfer" takes its images from.
        save_adversarial: whether chunks have the adversarial images too.
        corruptions: None: not evaluated.
        label_map: the model's label for each label of the files (`class_names.label_map`); None: the same.
    """

    model: PortableModel
    data_folder: str
    data_digest: str
    table_digest: str
    rows: tuple[int, ...]
    image_size: int | None
    cache: str | None
    threat_model: ThreatModel
    attacks: tuple[NamedAttack, ...]
    step_size: float | None
    label_map: tuple[int, ...] | None = None
    surrogate: PortableModel | AdversarialFile | None = None
    save_adversarial: bool = False
    corruptions: Corruptions | None = None

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
        return self.images_of(self.with_labels(table))

    def with_labels(self, table: ImageTable) -> ImageTable:
        """Returns a table of the files with the model's labels and class names."""
        return table if self.label_map is None else relabelled(table, self.label_map, self.model.class_names)

    def images_of(self, table: ImageTable) -> ImageSource:
        """Returns the images of a table as the model takes them."""
        channels = len(self.model.description.mean)
        return ImageSource(table, channels=channels, image_size=self.image_size, resized=False)


def open_test_split(folder: str, digest: str, image_size: int | None, cache: str | None) -> ImageTable:
    """Opens a test split as training does: a large one is mapped from this node's cache.

    Raises:
        UserError: for data that cannot be used, or a cache that cannot be written.
    """
    config = ExperimentConfig(data=DataConfig(image_size=image_size, digest=digest), scaling=ScalingConfig(cache=cache))
    return open_table(config, folder, "test")


def cut_for(request: EvaluationRequest, task: EvaluationTask) -> tuple[Chunk, ...]:
    """Returns the chunks of an evaluation; on a GPU small ones would take nearly as long as others."""
    return cut(len(task.rows), request.chunk_size, request.seed, smaller_at_end=not request.use_gpu)


def table_digest(table: ImageTable) -> str:
    """Returns the SHA-256 of the fingerprints and labels of all images, in their order."""
    return hashlib.sha256(table.fingerprints.numpy().tobytes() + table.labels.numpy().tobytes()).hexdigest()


class Evaluator:
    """The model on a device and the test images, in one thread.

    Raises:
        UserError: as `EvaluationTask.open_images`.
    """

    def __init__(self, task: EvaluationTask, device: torch.device | str = "cpu") -> None:
        torch.set_num_threads(1)
        self._task, self._device = task, device
        self._images = task.open_images()
        self._model = task.model.build(device)
        surrogate = task.surrogate
        self._surrogate = surrogate.build(device) if isinstance(surrogate, PortableModel) else None

    def chunk(self, chunk: Chunk) -> tuple[Columns, float]:
        """Returns the outcome of a chunk, row, row_id and label included, and the seconds it took."""
        task, chosen = self._task, self._task.rows[chunk.start : chunk.stop]
        x, y = self._batch(chosen)
        start = time.perf_counter()
        columns = evaluate_chunk(
            self._model,
            x,
            y,
            threat_model=task.threat_model,
            attacks=task.attacks,
            seed=chunk.seed,
            step_size=task.step_size,
            surrogate=task.surrogate.read(chosen) if isinstance(task.surrogate, AdversarialFile) else self._surrogate,
            keep_images=task.save_adversarial,
        )
        if task.corruptions is not None:
            images = self._images.images(torch.tensor(chosen))
            columns |= task.corruptions.outcomes(self._model, chosen, images, y)
        row_ids = np.array([self._images.table.row_id(row) for row in chosen], dtype=object)
        found = {"row": np.array(chosen, dtype=np.int64), "row_id": row_ids, "label": y.cpu().numpy(), **columns}
        return found, time.perf_counter() - start

    def curve(self, chunk: Chunk) -> dict[float, AccuracyCount]:
        """Returns how many images of a chunk are robust to PGD at each epsilon of the curve."""
        x, y = self._batch(self._task.rows[chunk.start : chunk.stop])
        threat_model = self._task.threat_model
        epsilons = curve_epsilons(threat_model)
        return robustness_curve(self._model, x, y, threat_model=threat_model, epsilons=epsilons, seed=chunk.seed)

    def sanity(self, rows: tuple[int, ...], accuracies: dict[str, AccuracyCount], seed: int) -> tuple[SanityCheck, ...]:
        """Returns the sanity checks on some rows of the test table."""
        x, y = self._batch(rows)
        ball, step = self._task.threat_model, self._task.step_size
        return check_sanity(self._model, x, y, threat_model=ball, accuracies=accuracies, seed=seed, step_size=step)

    def _batch(self, rows: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(rows, dtype=torch.int64)
        images = to_unit_interval(self._images.images(chosen).to(self._device))
        return images, self._images.table.labels[chosen].to(self._device)
