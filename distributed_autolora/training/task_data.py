"""A task as one worker sees it: its share of every batch, on the device, in [0, 1]."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.data.augmentation import crop_flip, to_unit_interval
from distributed_autolora.data.images import ImageSource
from distributed_autolora.data.parquet.locations import unpacked_bytes
from distributed_autolora.data.parquet.node_cache import mapped_images
from distributed_autolora.data.parquet.reader import ImageTable, check_same_classes, read_images
from distributed_autolora.data.prefetch import prefetched
from distributed_autolora.data.split_facts import SplitFacts
from distributed_autolora.data.splits import (
    Split,
    keep_copies_together,
    split_digest,
    split_train_val,
    stratified_subset,
)
from distributed_autolora.errors import UserError
from distributed_autolora.hardware import free_memory

AugmentationStream = Literal["augmentation", "natural_accuracy"]

IN_MEMORY_BYTES = 256 * 2**20
"""Splits of unscaled images up to this size are held in memory; others are mapped from this node's cache."""


class TaskData:
    """The training, validation and test images of one run.

    Raises:
        UserError: for data that cannot be used.
    """

    def __init__(
        self, config: ExperimentConfig, folder: str, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self._config, self._folder, self._device, self._dtype = config, folder, device, dtype
        self.table = open_table(config, folder, "train")
        # Attack and step of a GPU may outrun the decoding, and every epoch reads the training images twice.
        kept = free_memory() // 16 if device.type == "cuda" else 0
        self._source = image_source(config, self.table, kept)
        self._test: tuple[ImageTable, ImageSource] | None = None
        self.split = split_rows(config, self.table)

    @property
    def num_classes(self) -> int:
        """Number of classes of the task."""
        return len(self.table.class_names)

    def training_batch(self, rows: Tensor, epoch: int, stream: AugmentationStream) -> tuple[Tensor, Tensor]:
        """Returns augmented images and labels of training-table rows; draws are keyed by (epoch, stream, row)."""
        return self._augmented(self._training_pixels(rows, epoch, stream), rows, epoch, stream)

    def prefetch(
        self, batches: Iterable[Tensor], epoch: int, stream: AugmentationStream
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields `training_batch` of each batch of rows, decoded in a thread while the caller uses the last one.

        Work on the device stays in the caller's thread. Holds three batches of pixels at most.
        """

        for rows, pixels in prefetched(lambda rows: (rows, self._training_pixels(rows, epoch, stream)), batches):
            yield self._augmented(pixels, rows, epoch, stream)

    def plain_batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images and labels of training-table rows without augmentation."""
        return self._finish(self.to_device(self._source.images(rows))), self.to_device(self.table.labels[rows])

    def plain_batches(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields rows, images and labels of each batch of rows as `plain_batch` has them, decoded ahead in a thread."""
        return self._prefetched(self.table, self._source, batches)

    def test_batches(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields the same of test-table rows."""
        return self._prefetched(*self._open_test(), batches)

    def test_batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images and labels of test-table rows; the first call opens the test split."""
        table, source = self._open_test()
        return self._finish(self.to_device(source.images(rows))), self.to_device(table.labels[rows])

    @property
    def num_test(self) -> int:
        """Number of test images; opens the test split."""
        return len(self._open_test()[0])

    @property
    def test_row_ids(self) -> tuple[str, ...]:
        """Stable names of the test images, in the order of their table; opens the test split."""
        return self._open_test()[0].row_ids

    def to_device(self, values: Tensor) -> Tensor:
        """Returns the values where the run computes; the process does not wait for a copy to a GPU."""
        return self._pinned(values).to(self._device, non_blocking=True)

    def _prefetched(
        self, table: ImageTable, source: ImageSource, batches: Iterable[Tensor]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for rows, pixels in prefetched(lambda rows: (rows, self._pinned(source.images(rows))), batches):
            images = pixels.to(self._device, non_blocking=True)
            yield rows, self._finish(images), self.to_device(table.labels[rows])

    def _training_pixels(self, rows: Tensor, epoch: int, stream: AugmentationStream) -> Tensor:
        return self._pinned(self._source.training_images(rows, seed=self._config.seed, epoch=epoch, stream=stream))

    def _pinned(self, values: Tensor) -> Tensor:
        return values.pin_memory() if self._device.type == "cuda" and len(values) else values

    def _augmented(self, pixels: Tensor, rows: Tensor, epoch: int, stream: AugmentationStream) -> tuple[Tensor, Tensor]:
        images = pixels.to(self._device, non_blocking=True)
        if self._config.data.augmentation == "crop_flip":
            images = crop_flip(images, self.to_device(rows), seed=self._config.seed, epoch=epoch, stream=stream)
        return self._finish(images), self.to_device(self.table.labels[rows])

    def _open_test(self) -> tuple[ImageTable, ImageSource]:
        if self._test is None:
            table = open_table(self._config, self._folder, "test")
            check_same_classes(self.table, table)
            self._test = table, image_source(self._config, table)
        return self._test

    def _finish(self, images: Tensor) -> Tensor:
        return to_unit_interval(images).to(self._dtype)


def open_table(config: ExperimentConfig, folder: str, split: str) -> ImageTable:
    """Opens a split: small ones of unscaled images in memory, others mapped from this node's cache.

    Raises:
        UserError: for data that cannot be used, or a cache that cannot be written.
    """
    if _is_small(config, folder, split):
        return read_images(folder, split)
    return mapped_images(folder, split, digest=config.data.digest, cache=config.scaling.cache)


def fill_cache(config: ExperimentConfig, folder: str) -> None:
    """Writes this node's cache of the images where it is missing, which may take longer than a group of workers waits.

    An error is left to `open_table`, which meets it again.
    """
    splits = ("train", "test") if config.evaluation.test_split else ("train",)
    with contextlib.suppress(UserError):
        for split in splits:
            if not _is_small(config, folder, split):
                mapped_images(folder, split, digest=config.data.digest, cache=config.scaling.cache)


def _is_small(config: ExperimentConfig, folder: str, split: str) -> bool:
    return config.data.image_size is None and unpacked_bytes(folder, split) <= IN_MEMORY_BYTES


def image_source(config: ExperimentConfig, table: ImageTable, scaled_bytes: int = 0) -> ImageSource:
    """Returns the pixels of a table as this experiment sees them; up to `scaled_bytes` of scaled images are kept.

    Raises:
        UserError: for images that cannot be used so.
    """
    resized = config.data.augmentation == "resized_crop_flip"
    return ImageSource(
        table,
        channels=len(config.model.mean),
        image_size=config.data.image_size,
        resized=resized,
        scaled_bytes=scaled_bytes,
    )


def split_rows(config: ExperimentConfig, table: ImageTable | SplitFacts) -> Split:
    """Returns the rows to train and to validate on, both positions in the training table.

    Images with the same bytes are never on both sides.

    Raises:
        UserError: when the subset is larger than the table, or nothing is left to validate on.
    """
    labels = table.labels
    subset = torch.arange(len(labels))
    if config.data.train_images is not None:
        if config.data.train_images > len(labels):
            raise UserError(
                f"data.train_images is {config.data.train_images}, but {table.where} has {len(labels)} images: "
                "give fewer."
            )
        subset = stratified_subset(labels, config.data.train_images, config.data.split_seed)
    split = split_train_val(
        labels[subset],
        fraction=config.data.val_fraction,
        minimum=config.data.val_images_min,
        seed=config.data.split_seed,
    )
    train, val = subset[split.train], subset[split.val]
    return keep_copies_together(Split(train=train, val=val, digest=split_digest(train, val)), table.fingerprints)
