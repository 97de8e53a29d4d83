"""From encoded bytes to 8-bit grey or RGB pixels."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from distributed_autolora.data.storage import one_line
from distributed_autolora.errors import UserError

MODES = {1: "L", 3: "RGB"}
"""Pillow's mode for a number of channels."""

_MAX_SHOWN = 10
# What Pillow's readers raise for damaged files.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class ImageDecodeError(Exception):
    """An image that cannot be decoded; its message is the reason, without the place."""


def decode_image(encoded: bytes, channels: int) -> Image.Image:
    """Decodes an image upright, with transparency on white and 16 bits scaled to 8.

    Args:
        encoded: a file in any format that Pillow reads; of an animation, the first frame.
        channels: 1 for grey, 3 for RGB.

    Raises:
        ImageDecodeError: if the bytes are no image, are damaged, or hold pixels without a known range.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
        return _eight_bits(upright).convert(MODES[channels])
    except UnidentifiedImageError:
        raise ImageDecodeError("not an image in a known format") from None
    except _DECODER_ERRORS as error:
        raise ImageDecodeError(one_line(error)) from error


def refuse_undecodable(failures: Sequence[str]) -> None:
    """Raises one `UserError` for all the images that could not be decoded; returns if there are none.

    Args:
        failures: "PLACE: REASON" of each.
    """
    if not failures:
        return
    shown = "; ".join(failures[:_MAX_SHOWN])
    more = f"; and {len(failures) - _MAX_SHOWN} more" if len(failures) > _MAX_SHOWN else ""
    count = "an image" if len(failures) == 1 else f"{len(failures)} images"
    raise UserError(f"{count} cannot be decoded: {shown}{more}. Replace or remove what is damaged.")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Returns the image in a mode of 8 bits a channel without transparency."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 2**16 - 1:
            raise ValueError("its pixels have more than 16 bits")
        return Image.fromarray(((values * 255 + 2**15) // (2**16 - 1)).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
    return image if image.mode == "L" else image.convert("RGB")
