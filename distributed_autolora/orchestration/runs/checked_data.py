"""The check of a dataset before a run; a large one that did not change is not checked again."""

import contextlib
import hashlib
import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.errors import UserError
from distributed_autolora.files import read_json, write_json
from distributed_autolora.records import from_json, to_json

CHECKED_DATA = "checked_data"
"""Folder in the output folder for what is known of data: results of checks, and digests."""
_CHECK = 1
"""Raise it with every change of this package that finds more, or words a warning in another way."""
MANY = 10_000
"""From this many images on the check takes long enough to be kept."""


@dataclass(frozen=True)
class CheckedData:
    """What a run needs to know of its data before it starts.

    Attributes:
        classes: their number.
        size: width and height of the first training image, in pixels.
        train: images that are trained on.
        val: images that are validated on.
        warnings: one line each.
    """

    classes: int
    size: tuple[int, int]
    train: int
    val: int
    warnings: tuple[str, ...]


def check_data(config: ExperimentConfig, folder: str, kept: Path | None = None, many: int = MANY) -> CheckedData:
    """Decodes every image of a config's data (digest filled in) and chooses the rows.

    What was found in `many` training images or more is kept in the folder `kept`, and read from there for the same
    files and choice of rows.

    Raises:
        UserError: for data that cannot be used.
    """
    file = None if kept is None else kept / f"{_key(config, folder)}.json"
    if file is not None:
        with contextlib.suppress(OSError, ValueError, UserError):
            return from_json(CheckedData, read_json(file), str(file))
    from distributed_autolora.data.dataset_check import examine_task
    from distributed_autolora.training.evaluation import similarity_rows
    from distributed_autolora.training.task_data import split_rows

    report = examine_task(
        folder,
        with_test=config.evaluation.test_split,
        one_size=config.data.image_size is None,
        choose=lambda train: split_rows(config, train),
    ).usable()
    train, split = report.train, report.split
    assert split is not None
    similarity_rows(config, train.labels, split)
    size = next(iter(train.sizes))
    found = CheckedData(len(train.class_names), size, len(split.train), len(split.val), report.warnings)
    if file is not None and len(train.labels) >= many:
        with contextlib.suppress(OSError, UserError):  # it only saves time
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, to_json(found))
    return found


def _key(config: ExperimentConfig, folder: str) -> str:
    data, evaluation = config.data, config.evaluation
    values = [
        *(_CHECK, importlib.metadata.version("pillow"), folder, data.digest),
        *(data.train_images, data.val_fraction, data.val_images_min, data.split_seed, data.image_size is None),
        *(evaluation.test_split, evaluation.gradient_similarity_images),
    ]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]
