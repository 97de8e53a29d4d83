import torch

from distributed_autolora.data.augmentation import crop_flip, to_unit_interval
from tests.reference import augmentation as reference

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


def test_a_rows_augmentation_does_not_depend_on_its_batch() -> None:
    whole = crop_flip(IMAGES, ROWS, seed=0, epoch=1)
    for worker in (0, 1):
        share = crop_flip(IMAGES[worker::2], ROWS[worker::2], seed=0, epoch=1)
        assert torch.equal(share, whole[worker::2])
    assert torch.equal(crop_flip(IMAGES[9:10], ROWS[9:10], seed=0, epoch=1), whole[9:10])


def test_rows_of_one_batch_are_cropped_and_flipped_differently() -> None:
    same = IMAGES[:1].expand(500, 3, 9, 7)
    rows = torch.arange(500)
    crops = crop_flip(same, rows, seed=0, epoch=0)
    assert len({crop.numpy().tobytes() for crop in crops}) > 130  # 9 x 9 places, flipped or not: 162 at most
    flips = crop_flip(same, rows, seed=0, epoch=0, padding=0)
    mirrored = (flips == same.flip(3)).all(dim=(1, 2, 3))
    assert torch.equal(flips[~mirrored], same[~mirrored])
    assert 200 < int(mirrored.sum()) < 300


def test_epoch_seed_and_stream_each_change_the_augmentation() -> None:
    base = crop_flip(IMAGES, ROWS, seed=0, epoch=0)
    for seed, epoch, stream in ((1, 0, "augmentation"), (0, 1, "augmentation"), (0, 0, "natural_accuracy")):
        other = crop_flip(IMAGES, ROWS, seed=seed, epoch=epoch, stream=stream)
        assert (other == base).all(dim=(1, 2, 3)).float().mean() < 0.1


def test_an_empty_share_stays_empty() -> None:
    assert crop_flip(IMAGES[:0], ROWS[:0], seed=0, epoch=0).shape == (0, 3, 9, 7)


def test_bytes_become_the_unit_interval() -> None:
    scaled = to_unit_interval(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert scaled.dtype == torch.float32
    assert torch.allclose(scaled, torch.tensor([0.0, 0.2, 1.0]))
