"""Tiny images and tables for the tests of the data layer."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distributed_autolora.data.parquet.reader import ImageTable, read_images
from distributed_autolora.data.parquet.writer import ROW_GROUP, ImageRow, SplitWriter, groups_of


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(number: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    """Returns noise of (width, height) that is the same for the same number."""
    channels = (3,) if mode == "RGB" else ()
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    return Image.fromarray(pixels)


def rows_of(images: Sequence[bytes], num_classes: int = 2) -> list[ImageRow]:
    return [ImageRow(image, number % num_classes, f"id-{number}") for number, image in enumerate(images)]


def write_images(path: Path | str, rows: Iterable[ImageRow], *, class_names: Sequence[str], **texts: str) -> None:
    """Writes one Parquet file; `texts` are further metadata."""
    folder, _, name = str(path).rpartition("/")
    with SplitWriter(folder, name.removesuffix(".parquet"), len(class_names), shard_bytes=None) as writer:
        for group in groups_of(rows, ROW_GROUP):
            writer.write(group)
        writer.finish({"class_names": list(class_names), **texts})


def write(folder: Path, name: str, rows: Sequence[ImageRow], class_names: Sequence[str] = ("cat", "dog")) -> Path:
    path = folder / name
    write_images(path, rows, class_names=class_names, task="pets", split="train", licence="CC0", provenance="drawn")
    return path


def table_of(folder: Path, images: Sequence[bytes]) -> ImageTable:
    write(folder, "train.parquet", rows_of(images))
    return read_images(str(folder), "train")
