"""From encoded bytes to 8-bit grey or RGB pixels."""

import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from distributed_autolora.console import command
from distributed_autolora.data.parquet.locations import one_line
from distributed_autolora.errors import UserError

MODES = {1: "L", 3: "RGB"}
"""Pillow's mode for a number of channels."""

CONVERSIONS = {
    "RGB": "kept",
    "grey": "repeated to three channels where the model takes colour",
    "16 bits": "scaled to 8 bits",
    "transparent": "laid on white",
    "palette": "looked up in its palette",
    "CMYK": "turned into RGB without its colour profile",
    "black and white": "turned into 0 and 255",
    "other colours": "turned into RGB",
    "turned by EXIF": "turned upright",
    "animated": "first frame taken",
}
"""Kinds of image files, and how each is decoded."""

_KINDS = {"RGB": "RGB", "L": "grey", "P": "palette", "CMYK": "CMYK", "1": "black and white"}
_ORIENTATION, _TURNED = 0x0112, range(2, 9)
_MAX_SHOWN = 10
# Pillow's readers raise these for damaged files.
_DECODER_ERRORS: tuple[type[Exception], ...] = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError)
_DECODER_ERRORS += (OverflowError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError)


# Pillow warns of large images and odd headers with a line of its source. What matters is refused or counted here.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageDecodeError(Exception):
    """An image that cannot be decoded; its message is the reason, without the place."""


@dataclass(frozen=True)
class ImageFacts:
    """Size and kinds of an image file."""

    size: tuple[int, int]
    """(width, height) in pixels, upright."""
    kinds: tuple[str, ...]
    """Keys of `CONVERSIONS`: its colours first, then what else is special."""


def decode_image(encoded: bytes, channels: int) -> Image.Image:
    """Decodes an image (of an animation, the first frame) to 1 or 3 channels: upright, transparency on white, 8 bits.

    Raises:
        ImageDecodeError: if the bytes are no image, are damaged, or hold pixels without a known range.
    """
    return _decode(encoded, channels)[0]


def inspect_image(encoded: bytes) -> ImageFacts:
    """Decodes an image as `decode_image` does, and returns facts about the file.

    Raises:
        ImageDecodeError: see `decode_image`.
    """
    image, kinds = _decode(encoded, channels=3)
    return ImageFacts(image.size, kinds)


def _decode(encoded: bytes, channels: int) -> tuple[Image.Image, tuple[str, ...]]:
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            kinds = _kinds(image)
            upright = ImageOps.exif_transpose(image)
        return _eight_bits(upright).convert(MODES[channels]), kinds
    except UnidentifiedImageError:
        raise ImageDecodeError("not an image in a known format") from None
    except _DECODER_ERRORS as error:
        raise ImageDecodeError(one_line(error)) from error


def _kinds(image: Image.Image) -> tuple[str, ...]:
    if image.mode == "I" or image.mode.startswith("I;16"):
        colours = "16 bits"
    elif image.has_transparency_data:
        colours = "transparent"
    else:
        colours = _KINDS.get(image.mode, "other colours")
    special = {
        "turned by EXIF": image.getexif().get(_ORIENTATION) in _TURNED,
        "animated": getattr(image, "n_frames", 1) > 1,
    }
    return (colours, *(kind for kind, found in special.items() if found))


def refuse_undecodable(failures: Sequence[str], *, shown: int | None = _MAX_SHOWN) -> None:
    """Raises one `UserError` for images that could not be decoded; `shown` of them (None: all) are named."""
    if not failures:
        return
    named = list(failures[:shown])
    left = len(failures) - len(named)
    more = f"; and {left} more, which {command('data check')} lists" if left else ""
    count = "an image" if len(failures) == 1 else f"{len(failures)} images"
    raise UserError(f"{count} cannot be decoded: {'; '.join(named)}{more}. Replace or remove what is damaged.")


def _eight_bits(image: Image.Image) -> Image.Image:
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
