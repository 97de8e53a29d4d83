"""A task as one worker sees it: its share of every batch, on the device, in [0, 1]."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.data.augmentation import crop_flip, to_unit_interval
from distributed_autolora.data.images import ImageSource
from distributed_autolora.data.parquet import ImageTable, check_same_classes, read_images
from distributed_autolora.data.splits import Split, split_digest, split_train_val, stratified_subset
from distributed_autolora.errors import UserError

AugmentationStream = Literal["augmentation", "natural_accuracy"]


class TaskData:
    """The training, validation and test images of one run.

    Args:
        config: the experiment.
        folder: where its Parquet files are.
        device: where batches go.
        dtype: of the images handed out.

    Raises:
        UserError: for data that cannot be used.
    """

    def __init__(
        self, config: ExperimentConfig, folder: str, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self._config, self._folder, self._device, self._dtype = config, folder, device, dtype
        self.table = read_images(folder, "train")
        self._source = image_source(config, self.table)
        self._test: tuple[ImageTable, ImageSource] | None = None
        self.split = split_rows(config, self.table)

    @property
    def num_classes(self) -> int:
        """Number of classes of the task."""
        return len(self.table.class_names)

    def training_batch(self, rows: Tensor, epoch: int, stream: AugmentationStream) -> tuple[Tensor, Tensor]:
        """Returns augmented images and labels of training-table rows; draws are keyed by (epoch, stream, row)."""
        seed, augmentation = self._config.seed, self._config.data.augmentation
        if augmentation == "resized_crop_flip":
            images = self._to_device(self._source.training_images(rows, seed=seed, epoch=epoch, stream=stream))
        else:
            images = self._to_device(self._source.images(rows))
            if augmentation == "crop_flip":
                images = crop_flip(images, rows.to(self._device), seed=seed, epoch=epoch, stream=stream)
        return self._finish(images), self._to_device(self.table.labels[rows])

    def plain_batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images and labels of training-table rows without augmentation."""
        return self._finish(self._to_device(self._source.images(rows))), self._to_device(self.table.labels[rows])

    def test_batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images and labels of test-table rows; the first call opens the test split."""
        table, source = self._open_test()
        return self._finish(self._to_device(source.images(rows))), self._to_device(table.labels[rows])

    @property
    def num_test(self) -> int:
        """Number of test images; opens the test split."""
        return len(self._open_test()[0])

    def _open_test(self) -> tuple[ImageTable, ImageSource]:
        if self._test is None:
            table = read_images(self._folder, "test")
            check_same_classes(self.table, table)
            self._test = table, image_source(self._config, table)
        return self._test

    def _to_device(self, values: Tensor) -> Tensor:
        if self._device.type == "cuda" and len(values):
            return values.pin_memory().to(self._device, non_blocking=True)
        return values

    def _finish(self, images: Tensor) -> Tensor:
        return to_unit_interval(images).to(self._dtype)


def image_source(config: ExperimentConfig, table: ImageTable) -> ImageSource:
    """Returns the pixels of a table as this experiment sees them.

    Raises:
        UserError: for images that cannot be used so.
    """
    resized = config.data.augmentation == "resized_crop_flip"
    return ImageSource(table, channels=len(config.model.mean), image_size=config.data.image_size, resized=resized)


def split_rows(config: ExperimentConfig, table: ImageTable) -> Split:
    """Returns the rows to train and to validate on, both positions in the training table.

    Raises:
        UserError: when the subset is larger than the table.
    """
    labels = table.labels
    subset = torch.arange(len(table))
    if config.data.train_images is not None:
        if config.data.train_images > len(table):
            raise UserError(
                f"data.train_images is {config.data.train_images}, but {table.where} has {len(table)} images."
            )
        subset = stratified_subset(labels, config.data.train_images, config.data.split_seed)
    split = split_train_val(
        labels[subset],
        fraction=config.data.val_fraction,
        minimum=config.data.val_images_min,
        seed=config.data.split_seed,
    )
    train, val = subset[split.train], subset[split.val]
    return Split(train=train, val=val, digest=split_digest(train, val))
