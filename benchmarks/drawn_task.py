"""A task of drawn images in the package's file format."""

import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from distributed_autolora.data.parquet.writer import ROW_GROUP, ImageRow, SplitWriter, groups_of

CLASSES = 10


def write_drawn_task(folder: str, images: int, draw: Callable[[int], bytes]) -> None:
    """Writes a task of `images` training images and ten test images; `draw` returns the encoded image of a number."""

    def rows(first: int, count: int) -> Iterator[ImageRow]:
        return (ImageRow(draw(number), number % CLASSES, str(number)) for number in range(first, first + count))

    texts = {"class_names": [f"class {n}" for n in range(CLASSES)], "task": "drawn", "licence": "none"}
    for split, first, count in (("train", 0, images), ("test", images, CLASSES)):
        with SplitWriter(folder, split, CLASSES) as writer:
            for group in groups_of(rows(first, count), ROW_GROUP):
                writer.write(group)
            writer.finish({**texts, "split": split, "provenance": "drawn"})


def noise_png(number: int, side: int, channels: int) -> bytes:
    """Returns a PNG file of noise."""
    shape = (side, side, channels)[: 2 if channels == 1 else 3]
    pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
    return _encoded(Image.fromarray(pixels), "PNG", compress_level=0)


def smooth_jpeg(number: int, side: tuple[int, int]) -> bytes:
    """Returns a JPEG file of smooth shapes with some noise: about as many bytes a pixel as a photograph."""
    generator = np.random.default_rng(number)
    coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(side, Image.Resampling.BICUBIC)).astype(np.int16)
    noise = generator.integers(-12, 13, (side[1], side[0], 1), dtype=np.int16)
    return _encoded(Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8)), "JPEG", quality=85)


def _encoded(image: Image.Image, form: str, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()
