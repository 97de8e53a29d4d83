"""Pixels of a table's rows: decoded once when all are of one size and few, otherwise on access."""

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from distributed_autolora.core.keyed_random import keyed_uniform
from distributed_autolora.data.decoding import MODES, ImageDecodeError, decode_image, refuse_undecodable
from distributed_autolora.data.parquet.reader import ImageTable
from distributed_autolora.errors import UserError

T = TypeVar("T")

_SCALE = (0.08, 1.0)
_LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
_MAX_TRIES = 10
_SHORT_SIDE = 256 / 224

DECODED_ONCE_BYTES = 2**30
"""Tables with more pixels than this are decoded on access."""


class ImageSource:
    """Gives the uint8 pixels of rows of a table.

    Without `image_size` every image of the table has the same size, and all are decoded once into memory unless
    they are too many. With it an image is decoded on access, its short side scaled to image_size * 256 / 224 and
    its centre cut out (the evaluation transform of section 5 of the paper).

    Args:
        channels: 1 for grey, 3 for RGB.
        image_size: side of the images in pixels; None: their own.
        resized: `training_images` draws a resized crop and a flip for each row; otherwise it is `images`.
        decoded_once_bytes: the most pixel bytes of images of one size that are kept decoded.
        scaled_bytes: the most memory for scaled images that are kept once they were decoded, the first ones.
    """

    def __init__(
        self,
        table: ImageTable,
        *,
        channels: int,
        image_size: int | None,
        resized: bool,
        decoded_once_bytes: int = DECODED_ONCE_BYTES,
        scaled_bytes: int = 0,
    ) -> None:
        check_image_settings(channels=channels, image_size=image_size, resized=resized)
        self.table, self.channels, self.image_size, self.resized = table, channels, image_size, resized
        self._workers = ThreadPoolExecutor(max_workers=torch.get_num_threads())
        self._scaled_images: dict[int, Image.Image] = {}
        self._room, self._lock = scaled_bytes, threading.Lock()
        self._own_size = (0, 0)
        self._pixels: Tensor | None = None
        if image_size is None:
            self._own_size = self._each([0], lambda row: self._decode(row).size)[0]
            if len(table) * channels * math.prod(self._own_size) <= decoded_once_bytes:
                self._pixels = self._stack(torch.arange(len(table)), self._plain_image)

    def images(self, rows: Tensor) -> Tensor:
        """Returns uint8 [n, C, H, W], the images of rows (int64 [n]) under the evaluation transform."""
        if self._pixels is not None:
            return self._pixels[rows.cpu()]
        if self.image_size is None:
            return self._stack(rows, self._plain_image)
        return self._stack(rows, lambda row: transforms.center_crop(self._scaled(row), [self.image_size]))

    def training_images(self, rows: Tensor, *, seed: int, epoch: int, stream: str = "augmentation") -> Tensor:
        """Returns uint8 [n, C, H, W] for training; with `resized`, a random crop, scaled and flipped, of each row.

        The crop is torchvision's RandomResizedCrop, taken after the short side is scaled; its box and the flip
        are drawn from `keyed_uniform`, so they depend on seed, epoch, stream and row alone.
        """
        if not self.resized:
            return self.images(rows)
        draws = keyed_uniform(seed, stream, epoch, rows.cpu(), (4 * _MAX_TRIES + 1,))
        by_row = dict(zip(rows.tolist(), draws.tolist(), strict=True))
        return self._stack(rows, lambda row: self._training_image(row, by_row[row]))

    def _stack(self, rows: Tensor, load: Callable[[int], Image.Image]) -> Tensor:
        width, height = (self.image_size, self.image_size) if self.image_size else self._own_size
        images = self._each(rows.tolist(), lambda row: transforms.pil_to_tensor(load(row)).contiguous())
        return torch.stack(images) if images else torch.empty(0, self.channels, height, width, dtype=torch.uint8)

    def _each(self, rows: Sequence[int], load: Callable[[int], T]) -> list[T]:
        results = list(self._workers.map(partial(self._attempt, load), rows))
        refuse_undecodable([result for result in results if isinstance(result, str)])
        return [result for result in results if not isinstance(result, str)]

    def _attempt(self, load: Callable[[int], T], row: int) -> T | str:
        try:
            return load(row)
        except ImageDecodeError as error:
            return f"{self.table.place(row)}: {error}"

    def _decode(self, row: int) -> Image.Image:
        return decode_image(self.table.encoded(row), self.channels)

    def _plain_image(self, row: int) -> Image.Image:
        image = self._decode(row)
        if image.size != self._own_size:
            raise UserError(different_sizes(self.table.place(row), image.size, self._own_size))
        return image

    def _scaled(self, row: int) -> Image.Image:
        assert self.image_size is not None
        if (kept := self._scaled_images.get(row)) is not None:
            return kept
        image: Image.Image = transforms.resize(self._decode(row), [round(self.image_size * _SHORT_SIDE)])
        size = image.width * image.height * (1 if self.channels == 1 else 4)  # Pillow's RGB takes four bytes a pixel
        with self._lock:
            if size <= self._room and row not in self._scaled_images:
                self._scaled_images[row] = image
                self._room -= size
        return image

    def _training_image(self, row: int, draws: Sequence[float]) -> Image.Image:
        image = self._scaled(row)
        left, top, width, height = resized_crop_box(image.width, image.height, draws[:-1])
        crop = transforms.resized_crop(image, top, left, height, width, [self.image_size, self.image_size])
        return transforms.horizontal_flip(crop) if draws[-1] < 0.5 else crop  # type: ignore[no-any-return]


def check_image_settings(*, channels: int, image_size: int | None, resized: bool) -> None:
    """Checks the settings of an `ImageSource`.

    Raises:
        UserError: for a number of channels that no image has, or resized crops without `image_size`.
    """
    if channels not in MODES:
        raise UserError(
            f"Images have 1 channel or 3, not {channels}: give --model.mean and --model.std 1 or 3 entries."
        )
    if resized and image_size is None:
        raise UserError("The augmentation resized_crop_flip needs a size: give --data.image-size, for instance 224.")


def different_sizes(place: str, size: tuple[int, int], first_size: tuple[int, int]) -> str:
    """Returns the message for an image at `place` whose (width, height) is not that of the first row."""
    return (
        f"{place} is {size[0]} x {size[1]} pixels, but row 0 is {first_size[0]} x {first_size[1]}: "
        "give --data.image-size (for instance 224) to bring all images to one size."
    )


def resized_crop_box(width: int, height: int, draws: Sequence[float]) -> tuple[int, int, int, int]:
    """Returns (left, top, width, height) of a random crop: torchvision's RandomResizedCrop with given draws.

    A try takes four of `draws` in [0, 1): area (8 % to 100 %), aspect ratio (3/4 to 4/3, uniform in the
    logarithm), left and top. When none of the tries fits, the crop is central and as large as the ratios allow.
    """
    for try_ in range(len(draws) // 4):
        area, ratio, across, down = draws[4 * try_ : 4 * try_ + 4]
        target = width * height * (_SCALE[0] + area * (_SCALE[1] - _SCALE[0]))
        aspect = math.exp(_LOG_RATIO[0] + ratio * (_LOG_RATIO[1] - _LOG_RATIO[0]))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(across * (width - w + 1)), int(down * (height - h + 1)), w, h
    low, high = math.exp(_LOG_RATIO[0]), math.exp(_LOG_RATIO[1])
    w = width if width / height <= high else round(height * high)
    h = height if width / height >= low else round(width / low)
    return (width - w) // 2, (height - h) // 2, w, h
