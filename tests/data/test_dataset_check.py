"""The check of a prepared task: everything that is wrong is found, and what must not be trained on is refused."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from distributed_autolora.config import DataConfig, ExperimentConfig
from distributed_autolora.data.dataset_check import examine_task
from distributed_autolora.data.dataset_check_report import report_text
from distributed_autolora.data.parquet.writer import ImageRow
from distributed_autolora.data.split_facts import SplitFacts
from distributed_autolora.data.splits import Split, keep_copies_together, split_digest
from distributed_autolora.errors import UserError
from distributed_autolora.training.task_data import split_rows
from tests.data.pictures import encode, picture, rows_of, write
from tests.programs import program

IMAGES = [encode(picture(number)) for number in range(40)]


def task(folder: Path, train: list[bytes], test: list[bytes]) -> str:
    write(folder, "train.parquet", rows_of(train))
    write(folder, "test.parquet", rows_of(test))
    return str(folder)


def test_a_sound_task_is_described_and_not_refused(tmp_path: Path) -> None:
    report = examine_task(task(tmp_path, IMAGES[:30], IMAGES[30:])).usable()
    assert report.warnings == ()
    assert (report.train.class_counts(), report.train.sizes) == ([15, 15], {(8, 8): 30})
    assert report.train.image_bytes == sum(map(len, IMAGES[:30]))
    text = report_text(report)
    assert "train: 30 images" in text
    assert text.endswith("Nothing speaks against training on it.")


def test_every_image_that_cannot_be_decoded_is_listed_by_file_and_row(tmp_path: Path) -> None:
    bad = {*range(0, 30, 2)}
    images = [image[:-60] if number in bad else image for number, image in enumerate(IMAGES[:30])]
    report = examine_task(task(tmp_path, images, [b"no image", IMAGES[31]]))
    assert len(report.train.failures) == len(bad)
    text = report_text(report)
    assert all(f'train.parquet, row {row} (row_id "id-{row}"): ' in text for row in bad)
    assert 'test.parquet, row 0 (row_id "id-0"): not an image' in text
    with pytest.raises(UserError, match=r"^16 images cannot be decoded: .*and 6 more"):
        report.usable()


def test_rows_are_counted_through_row_groups(tmp_path: Path) -> None:
    images = [*(IMAGES * 7)[:259], b"no image"]
    report = examine_task(task(tmp_path, images, IMAGES[:2]))
    assert report.train.failures == [
        f'{tmp_path}/train.parquet, row 259 (row_id "id-259"): not an image in a known format'
    ]


def test_the_same_image_in_train_and_test_is_refused_and_named(tmp_path: Path) -> None:
    folder = task(tmp_path, IMAGES[:30], [IMAGES[35], IMAGES[4]])
    with pytest.raises(UserError, match=r"1 of 2 test images .*test\.parquet, row 1 .* is .*train\.parquet, row 4 "):
        examine_task(folder).usable()
    assert examine_task(folder, with_test=False).usable().test is None


def test_a_split_with_copies_on_both_sides_is_refused(tmp_path: Path) -> None:
    folder = task(tmp_path, [*IMAGES[:20], IMAGES[3]], IMAGES[30:])

    def halves(_facts: SplitFacts) -> Split:
        train, val = torch.arange(20), torch.tensor([20])
        return Split(train=train, val=val, digest="")

    with pytest.raises(UserError, match=r"1 validation images are also training images.*row 20"):
        examine_task(folder, choose=halves).usable()


def test_training_never_puts_copies_on_both_sides(tmp_path: Path) -> None:
    # Every image is there twice: a split that knew nothing of it would part some pair.
    folder = task(tmp_path, [image for image in IMAGES[:30] for _ in range(2)], IMAGES[30:])
    config = ExperimentConfig(data=DataConfig(path=folder, val_fraction=0.4, val_images_min=0))
    report = examine_task(folder, choose=lambda facts: split_rows(config, facts)).usable()
    assert report.split is not None
    assert 0 < len(report.split.val) < 24
    sides = [{int(row) // 2 for row in rows} for rows in (report.split.train, report.split.val)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(range(30))
    assert "holds 30 copies" in report.warnings[0]


def test_without_copies_the_split_is_untouched_and_all_copies_leave_no_validation() -> None:
    train, val = torch.tensor([0, 2, 3]), torch.tensor([1, 4])
    split = Split(train=train, val=val, digest=split_digest(train, val))
    assert keep_copies_together(split, torch.arange(5)) is split
    moved = keep_copies_together(split, torch.tensor([7, 7, 1, 2, 3]))
    assert (moved.train.tolist(), moved.val.tolist()) == ([0, 1, 2, 3], [4])
    assert moved.digest == split_digest(moved.train, moved.val)
    with pytest.raises(UserError, match="Every image that was held out"):
        keep_copies_together(split, torch.zeros(5, dtype=torch.int64))


def test_special_images_are_counted_with_what_becomes_of_them(tmp_path: Path) -> None:
    rotated = Image.Exif()
    rotated[0x0112] = 6
    images = [
        encode(picture(0, mode="L")),
        encode(picture(1).convert("CMYK"), "JPEG"),
        encode(picture(2).convert("RGBA")),
        encode(Image.new("I;16", (8, 8))),
        encode(picture(3).convert("P")),
        encode(picture(4, size=(9, 5)), "JPEG", exif=rotated),
        encode(picture(5)),
    ]
    report = examine_task(task(tmp_path, images, IMAGES[:2])).usable()
    kinds = ("grey", "CMYK", "transparent", "16 bits", "palette", "turned by EXIF")
    assert [report.train.kinds[kind] for kind in kinds] == [1] * 6
    assert report.train.sizes[(5, 9)] == 1
    assert "1 CMYK, 1 transparent, 1 16 bits" in report.warnings[0]
    assert "  CMYK: 1 (turned into RGB without its colour profile)" in report_text(report)
    with pytest.raises(UserError, match=r"row 5 .* is 5 x 9 pixels, but row 0 is 8 x 8"):
        examine_task(str(tmp_path), one_size=True).usable()


def test_missing_classes_imbalance_and_contradicting_labels_are_warned_of(tmp_path: Path) -> None:
    rows = [ImageRow(image, int(number < 2), str(number)) for number, image in enumerate(IMAGES[:27])]
    names = ["cat", "dog", "Cat"]
    more = [ImageRow(image, 2, f"more {number}") for number, image in enumerate(IMAGES[27:29])]
    write(tmp_path, "train.parquet", [*rows, *more, ImageRow(IMAGES[5], 1, "again")], names)
    write(tmp_path, "test.parquet", rows_of(IMAGES[30:]), names)
    warnings = " ".join(examine_task(str(tmp_path)).usable().warnings)
    assert "(test) has no image of 1 classes: Cat" in warnings
    assert "class names that look alike: 'cat' and 'Cat'" in warnings
    assert "two labels in 1 places" in warnings
    write(tmp_path, "train.parquet", [*rows, *more], names)
    assert "not balanced: 2 to 25 images a class" in " ".join(examine_task(str(tmp_path)).usable().warnings)


def test_classes_of_one_or_no_training_image_and_repeated_row_ids_are_refused(tmp_path: Path) -> None:
    names = ["cat", "dog", "rat"]
    write(tmp_path, "test.parquet", rows_of(IMAGES[30:]), names)
    write(tmp_path, "train.parquet", [*rows_of(IMAGES[:10]), ImageRow(IMAGES[10], 2, "one")], names)
    with pytest.raises(UserError, match=r"too few training images of rat: 1: a class needs two"):
        examine_task(str(tmp_path)).usable()
    write(tmp_path, "train.parquet", [*rows_of(IMAGES[:10]), ImageRow(IMAGES[10], 0, "id-3")], names[:2])
    write(tmp_path, "test.parquet", rows_of(IMAGES[30:]), names[:2])
    with pytest.raises(UserError, match=r"\(train\) has row ids more than once: id-3"):
        examine_task(str(tmp_path)).usable()


def test_a_subset_that_leaves_a_class_untrained_is_refused(tmp_path: Path) -> None:
    rows = [ImageRow(image, int(number < 2), str(number)) for number, image in enumerate(IMAGES[:30])]
    write(tmp_path, "train.parquet", rows)
    config = ExperimentConfig(data=DataConfig(path=str(tmp_path), train_images=5, val_images_min=0, val_fraction=0.3))
    with pytest.raises(UserError, match=r"the chosen training images of .* have none of dog"):
        examine_task(str(tmp_path), with_test=False, choose=lambda facts: split_rows(config, facts)).usable()


def test_the_program_lists_and_refuses(tmp_path: Path) -> None:
    folder = task(tmp_path, [*IMAGES[:9], b"no image"], IMAGES[30:])
    done = program("jobs/prepare_data.py", "check", folder)
    assert done.returncode == 2
    assert "cannot be decoded: " in done.stdout
    assert done.stderr.startswith("error: an image cannot be decoded: ")
    assert done.stderr.count("\n") == 1


def test_training_and_test_images_of_two_sizes_are_refused_where_none_is_chosen(tmp_path: Path) -> None:
    folder = task(tmp_path, IMAGES[:20], [encode(picture(number, size=(10, 8))) for number in range(50, 54)])
    assert examine_task(folder).usable().warnings == ()
    with pytest.raises(UserError, match=r"\(test\) has images of 10 x 8 pixels, but .*\(train\) of 8 x 8: give --data"):
        examine_task(folder, one_size=True).usable()
