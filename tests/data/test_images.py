from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from distributed_autolora.data import keyed_uniform
from distributed_autolora.data.images import ImageSource, resized_crop_box
from distributed_autolora.errors import UserError
from tests.data.pictures import encode, picture, table_of

SMALL = [picture(number) for number in range(20)]
LARGE = [picture(number, size=(40 + 7 * number, 60 - 3 * number)) for number in range(12)]
ROWS = torch.arange(12)


@pytest.fixture
def small(tmp_path: Path) -> ImageSource:
    return ImageSource(table_of(tmp_path, list(map(encode, SMALL))), channels=3, image_size=None, resized=False)


@pytest.fixture
def large(tmp_path: Path) -> ImageSource:
    return ImageSource(table_of(tmp_path, list(map(encode, LARGE))), channels=3, image_size=28, resized=True)


def test_images_of_one_size_come_as_they_are_in_the_order_asked_for(small: ImageSource) -> None:
    images = small.images(torch.tensor([5, 0, 5]))
    assert images.dtype == torch.uint8
    assert images.shape == (3, 3, 8, 8)
    for image, row in zip(images, (5, 0, 5), strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(SMALL[row]))
    assert torch.equal(small.training_images(torch.tensor([5, 0, 5]), seed=0, epoch=0), images)


@pytest.mark.parametrize(("room", "at_least", "at_most"), [(10**7, 12, 12), (20_000, 1, 11), (0, 0, 0)])
def test_scaled_images_are_kept_as_far_as_there_is_room_and_change_nothing(
    large: ImageSource, room: int, at_least: int, at_most: int
) -> None:
    kept = ImageSource(large.table, channels=3, image_size=28, resized=True, scaled_bytes=room)
    for epoch in (1, 2):
        images = kept.training_images(ROWS, seed=0, epoch=epoch)
        assert torch.equal(images, large.training_images(ROWS, seed=0, epoch=epoch))
    assert torch.equal(kept.images(ROWS), large.images(ROWS))
    others = pa.chunked_array([[encode(SMALL[0])] * len(ROWS)], pa.binary())
    kept.table = replace(large.table, encoded_images=others)
    same = (kept.images(ROWS) == large.images(ROWS)).flatten(1).all(1)
    assert at_least <= int(same.sum()) <= at_most


def test_an_empty_share_has_no_images(small: ImageSource, large: ImageSource) -> None:
    assert small.images(ROWS[:0]).shape == (0, 3, 8, 8)
    assert large.images(ROWS[:0]).shape == (0, 3, 28, 28)
    assert large.training_images(ROWS[:0], seed=0, epoch=0).shape == (0, 3, 28, 28)


def test_a_training_image_depends_on_its_row_epoch_seed_and_stream_alone(large: ImageSource) -> None:
    images = large.training_images(ROWS, seed=0, epoch=1)
    assert images.shape == (12, 3, 28, 28)
    assert images.dtype == torch.uint8
    share = large.training_images(ROWS[1::2].flip(0), seed=0, epoch=1)
    assert torch.equal(share.flip(0), images[1::2])
    for seed, epoch, stream in ((1, 1, "augmentation"), (0, 2, "augmentation"), (0, 1, "natural_accuracy")):
        other = large.training_images(ROWS, seed=seed, epoch=epoch, stream=stream)
        assert (other != images).flatten(1).any(1).float().mean() > 0.8


@pytest.mark.parametrize(("size", "scaled", "images"), [(28, 32, LARGE), (224, 256, [picture(0, size=(300, 400))])])
def test_the_evaluation_transform_is_torchvisions_resize_and_centre_crop(
    tmp_path: Path, size: int, scaled: int, images: list[Image.Image]
) -> None:
    transform = v2.Compose([v2.Resize(scaled), v2.CenterCrop(size), v2.PILToTensor()])
    source = ImageSource(table_of(tmp_path, list(map(encode, images))), channels=3, image_size=size, resized=True)
    found = source.images(torch.arange(len(images)))
    assert torch.equal(found, torch.stack([transform(image) for image in images]))


def test_half_of_the_training_images_are_mirrored(tmp_path: Path) -> None:
    # Brightness rises from left to right, whatever the crop.
    ramp = np.broadcast_to(np.linspace(0, 255, 32).astype(np.uint8), (32, 32))
    table = table_of(tmp_path, [encode(v2.functional.to_pil_image(ramp.copy()))] * 200)
    source = ImageSource(table, channels=1, image_size=28, resized=True)
    crops = source.training_images(torch.arange(200), seed=0, epoch=0).float()
    mirrored = crops[..., 0].mean((1, 2)) > crops[..., -1].mean((1, 2))
    assert 75 < int(mirrored.sum()) < 125
    assert len({crop.numpy().tobytes() for crop in crops}) > 100, "each row is cropped in its own way"


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 2**31 - 1), st.sampled_from([0.0, 0.5, 1 - 2**-24]))
def test_a_crop_lies_inside_the_image(width: int, height: int, seed: int, place: float) -> None:
    draws = keyed_uniform(seed, "augmentation", 0, torch.tensor([0]), (10, 4))
    draws[:, :, 2:] = place
    left, top, w, h = resized_crop_box(width, height, draws.flatten().tolist())
    assert w > 0
    assert h > 0
    assert 0 <= left <= width - w
    assert 0 <= top <= height - h


@pytest.mark.parametrize(("place", "corner"), [(0.0, 0), (1 - 2**-24, 128)])
def test_crops_reach_both_edges(place: float, corner: int) -> None:
    a_quarter_square = [(0.25 - 0.08) / 0.92, 0.5]
    assert resized_crop_box(256, 256, [*a_quarter_square, place, place]) == (corner, corner, 128, 128)


def test_crops_have_the_areas_and_ratios_of_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(4000, 40, generator=generator).tolist()
    boxes = torch.tensor([resized_crop_box(256, 256, row) for row in draws], dtype=torch.float64)
    torch.manual_seed(0)
    theirs = torch.tensor([_torchvision_box() for _ in range(4000)], dtype=torch.float64)
    assert torch.allclose(boxes.mean(0), theirs.mean(0), atol=5)
    assert torch.allclose(boxes.std(0), theirs.std(0), atol=5)
    ratios = boxes[:, 2] / boxes[:, 3]
    assert 0.74 < ratios.min() < 0.77
    assert 1.30 < ratios.max() < 1.35
    assert boxes[:, 2:].prod(1).min() >= 0.079 * 256 * 256


def _torchvision_box() -> tuple[int, int, int, int]:
    params = v2.RandomResizedCrop(224).make_params([torch.empty(3, 256, 256)])
    return params["left"], params["top"], params["width"], params["height"]


@pytest.mark.parametrize(
    ("size", "box"),
    [((300, 100), (83, 0, 133, 100)), ((100, 300), (0, 83, 100, 133)), ((100, 100), (0, 0, 100, 100))],
    ids=["wide", "tall", "square"],
)
def test_when_no_try_fits_the_crop_is_central(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    assert resized_crop_box(*size, []) == box
    if size[0] != size[1]:
        always_too_large = [1 - 2**-24] * 4 * 10 if size[0] > size[1] else [1 - 2**-24, 0.0, 0.0, 0.0] * 10
        assert resized_crop_box(*size, always_too_large) == box


def test_images_of_different_sizes_are_refused_naming_the_first_that_differs(tmp_path: Path) -> None:
    images = [encode(picture(0)), encode(picture(1)), encode(picture(2, size=(9, 8))), encode(picture(3, size=(7, 7)))]
    table = table_of(tmp_path, images)
    message = r'train\.parquet, row 2 \(row_id "id-2"\) is 9 x 8 pixels, but row 0 is 8 x 8: .*--data\.image-size'
    with pytest.raises(UserError, match=message):
        ImageSource(table, channels=3, image_size=None, resized=False)
    assert len(ImageSource(table, channels=3, image_size=8, resized=False).images(torch.arange(4))) == 4


def test_a_damaged_image_is_named_by_file_row_and_id(tmp_path: Path) -> None:
    table = table_of(tmp_path, [encode(picture(0)), b"no image"])
    message = r'train\.parquet, row 1 \(row_id "id-1"\): not an image'
    with pytest.raises(UserError, match=message):
        ImageSource(table, channels=3, image_size=None, resized=False)
    source = ImageSource(table, channels=3, image_size=28, resized=True)
    with pytest.raises(UserError, match=message):
        source.images(torch.tensor([0, 1]))
    with pytest.raises(UserError, match=message):
        source.training_images(torch.tensor([1]), seed=0, epoch=0)
    assert len(source.images(torch.tensor([0]))) == 1


def test_many_images_of_one_size_are_decoded_on_access_to_the_same_pixels(tmp_path: Path) -> None:
    table = table_of(tmp_path, list(map(encode, SMALL)))
    once, on_access = (
        ImageSource(table, channels=3, image_size=None, resized=False, decoded_once_bytes=limit)
        for limit in (20 * 3 * 64, 20 * 3 * 64 - 1)
    )
    rows = torch.tensor([3, 19, 0])
    assert torch.equal(once.images(rows), on_access.images(rows))
    assert on_access.images(rows[:0]).shape == (0, 3, 8, 8)


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    table = table_of(tmp_path, [encode(picture(0))])
    with pytest.raises(UserError, match="not 2"):
        ImageSource(table, channels=2, image_size=28, resized=False)
    with pytest.raises(UserError, match=r"--data\.image-size"):
        ImageSource(table, channels=3, image_size=None, resized=True)
