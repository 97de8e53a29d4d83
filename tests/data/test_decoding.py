import struct

import numpy as np
import pytest
from PIL import Image

from distributed_autolora.data.decoding import ImageDecodeError, decode_image, inspect_image, refuse_undecodable
from distributed_autolora.errors import UserError
from tests.data.pictures import encode, picture

_ORIENTATION = 0x0112


def pixels(encoded: bytes, channels: int = 3) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.array(decode_image(encoded, channels))


def test_lossless_pixels_come_back_as_they_were() -> None:
    assert np.array_equal(pixels(encode(picture(0))), np.array(picture(0)))
    grey = picture(1, mode="L")
    assert np.array_equal(pixels(encode(grey), channels=1), np.array(grey))
    assert np.array_equal(pixels(encode(grey)), np.array(grey)[..., None].repeat(3, axis=2))


@pytest.mark.parametrize(("orientation", "is_turned"), [(0, False), (1, False), (2, True), (8, True), (9, False)])
def test_only_an_orientation_that_turns_is_counted_as_turned(orientation: int, is_turned: bool) -> None:
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    encoded = encode(picture(2, size=(6, 4)), "JPEG", exif=exif)
    assert ("turned by EXIF" in inspect_image(encoded).kinds) == is_turned
    if not is_turned:
        assert inspect_image(encoded).size == (6, 4)


def test_colour_becomes_luminance_in_grey() -> None:
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    assert pixels(encode(red), channels=1).tolist() == [[76, 76], [76, 76]]


@pytest.mark.parametrize(
    ("orientation", "rotation"), [(1, 0), (3, 2), (6, -1), (8, 1)], ids=["upright", "180", "right", "left"]
)
def test_the_exif_orientation_is_obeyed(orientation: int, rotation: int) -> None:
    image = picture(2, size=(6, 4))
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    expected = np.rot90(np.array(image), rotation)
    assert np.array_equal(pixels(encode(image, exif=exif)), expected)


def test_transparency_lies_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    assert pixels(encode(image)).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    grey = Image.new("LA", (1, 1), (0, 127))
    assert pixels(encode(grey), channels=1).tolist() == [[128]]


def test_palettes_are_looked_up_and_their_transparent_colour_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 100, 50, 1, 2, 3])
    image.putpixel((1, 0), 1)
    assert pixels(encode(image)).tolist() == [[[200, 100, 50], [1, 2, 3]]]
    assert pixels(encode(image, transparency=1)).tolist() == [[[200, 100, 50], [255, 255, 255]]]
    assert pixels(encode(image, kind="GIF")).tolist() == [[[200, 100, 50], [1, 2, 3]]]


def test_sixteen_bits_are_scaled_to_eight_not_clipped() -> None:
    values = np.array([[0, 257, 128 * 257, 65_535, 300]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        assert pixels(encode(Image.fromarray(values), kind), channels=1).tolist() == [[0, 1, 128, 255, 1]]


def test_black_and_white_and_print_colours_are_understood() -> None:
    assert pixels(encode(Image.new("1", (1, 1), 1))).tolist() == [[[255, 255, 255]]]
    assert pixels(encode(Image.new("CMYK", (1, 1), (0, 0, 0, 255)), "TIFF")).tolist() == [[[0, 0, 0]]]


def damaged_png() -> bytes:
    content = bytearray(encode(picture(3, size=(40, 40))))
    content[len(content) // 2] ^= 0xFF
    return bytes(content)


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"", "not an image in a known format"),
        (b"this is a text", "not an image in a known format"),
        (encode(picture(0, size=(64, 64)), "JPEG")[:-400], "truncated"),
        (encode(picture(0, size=(64, 64)))[:300], "."),
        (damaged_png(), "."),
        (encode(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "floating-point"),
        (encode(Image.fromarray(np.full((2, 2), 70_000, np.int32)), "TIFF"), "16 bits"),
        # A header that promises 60,000 x 60,000 pixels.
        (encode(picture(0)).replace(struct.pack(">II", 8, 8), struct.pack(">II", 60_000, 60_000)), "."),
        (encode(picture(0), "AVIF").replace(b"av01", b"av02"), "decode"),
    ],
    ids=["empty", "text", "cut JPEG", "cut PNG", "damaged PNG", "float", "32 bits", "huge", "damaged AVIF"],
)
def test_what_cannot_be_decoded_is_refused_with_a_reason(encoded: bytes, reason: str) -> None:
    with pytest.raises(ImageDecodeError, match=reason) as caught:
        decode_image(encoded, 3)
    assert "\n" not in str(caught.value)


def test_one_error_lists_ten_damaged_images_and_counts_the_others() -> None:
    refuse_undecodable([])
    failures = [f"p{number}: r" for number in range(12)]
    with pytest.raises(UserError, match=r"^12 images cannot .*: p0: r; .*p9: r; and 2 more, which .* check lists\. "):
        refuse_undecodable(failures)
    with pytest.raises(UserError, match=r"p9: r; p10: r; p11: r\. Replace"):
        refuse_undecodable(failures, shown=None)
    with pytest.raises(UserError, match=r"^an image cannot be decoded: p: r\. "):
        refuse_undecodable(["p: r"])
