"""A caller's dataset, written once as the Parquet files of a task."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from distributed_autolora.data.preparation.source import SourceRow, SourceTask, held_out
from distributed_autolora.data.preparation.write import write_task
from distributed_autolora.errors import UserError


class Dataset(Protocol):
    """Images with labels by number, such as a `torch.utils.data.Dataset` or a list of (image, label)."""

    def __len__(self) -> int:
        """Returns the number of images."""

    def __getitem__(self, index: int, /) -> Any:
        """Returns (image, label): a PIL image or an array, and a whole number from 0 on."""


def write_dataset(
    train: Dataset,
    folder: str | Path,
    *,
    test: Dataset | None = None,
    class_names: Sequence[str] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    task: str | None = None,
    licence: str = "not stated",
    overwrite: bool = False,
) -> str:
    """Writes a map-style dataset as train.parquet and test.parquet, once, and returns the folder for `finetune`.

    An image is a PIL image, an array [H, W] or [H, W, C] of uint8, or a tensor [C, H, W] of uint8 or of floats in
    [0, 1]; leave random augmentation and normalisation out. Images are kept as PNG, without loss at 8 bits.

    Args:
        test: images to test on; None: a stratified `test_fraction` of `train` is held out with `seed`.
        class_names: a name for each label; None: `train.classes` where it has that, else "0", "1", ...
        task: name of the task; None: that of the folder.

    Raises:
        UserError: for an item that is no (image, label), or a folder that cannot be written or holds files already.
    """
    labels = {"train": _labels(train), "test": [] if test is None else _labels(test)}
    names = class_names or getattr(train, "classes", None)
    names = list(names or map(str, range(1 + max([*labels["train"], *labels["test"]], default=0))))
    rows = {"train": _rows(train, labels["train"], "train")}
    how = f"{type(train).__name__} of a program"
    if test is None:
        kept, held, share = held_out(labels["train"], test_fraction, seed)
        rows, how = (
            {split: [rows["train"][row] for row in chosen] for split, chosen in (("train", kept), ("test", held))},
            f"{how}, {share}",
        )
    else:
        rows["test"] = _rows(test, labels["test"], "test")
    task = task or Path(folder).name
    source = SourceTask(task=task, class_names=names, rows=rows, licence=licence, provenance=how)
    return write_task(str(folder), source, overwrite=overwrite).output


def _labels(dataset: Dataset) -> list[int]:
    """Returns all labels, from `targets` where the dataset has them: then no image is read twice."""
    found: Iterable[Any] = getattr(dataset, "targets", None) or (dataset[index][1] for index in range(len(dataset)))
    try:
        labels = [int(label) for label in found]
    except (TypeError, ValueError, LookupError):
        raise UserError(f"An item of {type(dataset).__name__} is no (image, label) with a whole number.") from None
    if min(labels, default=0) < 0:
        raise UserError(f"A label of {type(dataset).__name__} is {min(labels)}: labels count from 0.")
    return labels


def _rows(dataset: Dataset, labels: Sequence[int], split: str) -> list[SourceRow]:
    kind = type(dataset).__name__
    return [
        SourceRow(lambda index=index: _encoded(dataset[index][0]), label, f"{split}-{index}", f"{kind}[{index}]")  # type: ignore[misc]
        for index, label in enumerate(labels)
    ]


def _encoded(image: Any) -> bytes:
    """Returns an image as PNG.

    Raises:
        OSError: for what is no image.
    """
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        if image.is_floating_point():
            if not bool(((image >= 0) & (image <= 1)).all()):
                raise OSError("a float image has values outside [0, 1]: leave its normalisation out")
            image = (image * 255).round().to(torch.uint8)
        image = image.permute(1, 2, 0).squeeze(-1).numpy() if image.dim() == 3 else image.numpy()
    if isinstance(image, np.ndarray):
        try:
            image = Image.fromarray(image.squeeze(-1) if image.ndim == 3 and image.shape[-1] == 1 else image)
        except (TypeError, ValueError) as error:
            raise OSError(f"an array of {image.dtype} {list(image.shape)} is no image") from error
    if not isinstance(image, Image.Image):
        raise OSError(f"{type(image).__name__} is no image")
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()
