"""Fashion-MNIST from its IDX files, as rows for Parquet."""

import gzip
import io
import math
import struct
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import FashionMNIST

from distributed_autolora.data.parquet.locations import one_line
from distributed_autolora.data.preparation.source import SourceRow
from distributed_autolora.data.splits import stratified_subset
from distributed_autolora.errors import UserError

FASHION_MNIST_CLASSES = tuple(FashionMNIST.classes)
FASHION_MNIST_LICENCE = "MIT, Copyright (c) 2017 Zalando SE, https://tech.zalando.com"


def fashion_mnist(
    source: Path,
    split: str,
    *,
    classes: Sequence[int],
    limit: int | None,
    seed: int,
    left_out: frozenset[bytes] | None = None,
) -> list[SourceRow]:
    """Reads Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017) from its IDX files.

    Args:
        source: folder with train-images-idx3-ubyte and so on, gzipped or not; torchvision's download folder too.
        classes: official labels to keep; they become 0, 1, ... in this order.
        limit: size of a stratified subset, which `seed` decides; None: all images.
        left_out: pixels [28, 28] of images to leave out, as bytes; None: none.

    Returns PNG rows in the order of the file, with the split and the index in the official file as row ids.

    Raises:
        UserError: for a missing or damaged file, or a limit above the number of images.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    images = _read_idx(source, f"{prefix}-images-idx3-ubyte", dimensions=3)
    official = torch.from_numpy(_read_idx(source, f"{prefix}-labels-idx1-ubyte", dimensions=1)).long()
    if len(images) != len(official):
        raise UserError(f"{source} has {len(images)} {split} images but {len(official)} labels: fetch the files again.")
    indices = torch.isin(official, torch.tensor(list(classes))).nonzero().flatten()
    if left_out is not None:
        indices = indices[[images[index].tobytes() not in left_out for index in indices.tolist()]]
    if limit is not None and not 1 <= limit <= len(indices):
        raise UserError(
            f"{limit} {split} images were asked for: {source} has 1 to {len(indices)} of these classes"
            f"{'' if left_out is None else ' that are not left out'}: ask for so many."
        )
    if limit is not None:
        indices = indices[stratified_subset(official[indices], limit, seed)]
    chosen = [(index, f"{split}/{index:05d}") for index in indices.tolist()]
    return [
        SourceRow(partial(png, images[index]), classes.index(int(official[index])), row_id, f"{source}, {row_id}")
        for index, row_id in chosen
    ]


def _read_idx(source: Path, name: str, dimensions: int) -> NDArray[np.uint8]:
    """Returns the array of an IDX file of bytes: magic, big-endian sizes, values."""
    path = _find_idx(source, name)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}. Fetch the file again.") from error
    if content[:4] != bytes([0, 0, 8, dimensions]):
        raise UserError(f"{path} is no IDX file of bytes in {dimensions} dimensions. Fetch the file again.")
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:start]) if len(content) >= start else ()
    if not shape or len(content) - start != math.prod(shape):
        raise UserError(f"{path} is damaged: its {len(content)} bytes do not fit its header. Fetch the file again.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _find_idx(source: Path, name: str) -> Path:
    for folder in (source, source / "FashionMNIST" / "raw", source / "raw"):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise UserError(
        f"{source} has no {name} or {name}.gz: give the folder of the Fashion-MNIST files (Debian's package "
        "dataset-fashion-mnist puts them into /usr/share/datasets/fashion-mnist)."
    )


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encodes uint8 pixels [H, W] or [H, W, 3] without loss."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
