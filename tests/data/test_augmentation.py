import torch

from distributed_autolora.data.augmentation import crop_flip, to_unit_interval
from tests.reference import keyed as reference

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(1, 256, (64, 3, 9, 7), dtype=torch.uint8, generator=GENERATOR)
ROWS = torch.randperm(1000, generator=GENERATOR)[:64]


def test_crop_and_flip_equal_the_pixel_by_pixel_oracle() -> None:
    for stream, padding in (("augmentation", 4), ("natural_accuracy", 2), ("augmentation", 0)):
        result = crop_flip(IMAGES[:12], ROWS[:12], seed=3, epoch=5, stream=stream, padding=padding)
        assert result.dtype == torch.uint8
        for image, row, augmented in zip(IMAGES, ROWS.tolist(), result, strict=False):
            expected = reference.crop_flip(image, row, seed=3, epoch=5, stream=stream, padding=padding)
            assert torch.equal(augmented, expected)
    assert crop_flip(IMAGES[:0], ROWS[:0], seed=0, epoch=0).shape == (0, 3, 9, 7)


def test_rows_of_one_batch_are_cropped_and_flipped_differently() -> None:
    same = IMAGES[:1].expand(500, 3, 9, 7)
    rows = torch.arange(500)
    crops = crop_flip(same, rows, seed=0, epoch=0)
    assert len({crop.numpy().tobytes() for crop in crops}) > 130  # 9 x 9 places, flipped or not: 162 at most
    flips = crop_flip(same, rows, seed=0, epoch=0, padding=0)
    mirrored = (flips == same.flip(3)).all(dim=(1, 2, 3))
    assert torch.equal(flips[~mirrored], same[~mirrored])
    assert 200 < int(mirrored.sum()) < 300


def test_bytes_become_the_unit_interval() -> None:
    scaled = to_unit_interval(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert scaled.dtype == torch.float32
    assert torch.allclose(scaled, torch.tensor([0.0, 0.2, 1.0]))
