"""The published collections in their original formats: prepared, read back, checked."""

import json
import pickle
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from distributed_autolora.data.catalog import labelled_task
from distributed_autolora.data.dataset_check import examine_task
from distributed_autolora.data.decoding import decode_image
from distributed_autolora.data.parquet.reader import read_images
from distributed_autolora.data.preparation import flags as kinds
from distributed_autolora.data.preparation.cub_and_dogs import cub
from distributed_autolora.data.preparation.flags import ImageList
from distributed_autolora.data.preparation.prepare import prepare
from distributed_autolora.data.preparation.torchvision_datasets import consecutive_split
from distributed_autolora.data.preparation.write import Prepared, write_task
from distributed_autolora.errors import UserError
from tests.data.preparation import archives

KINDS: dict[str, type[kinds.Published]] = {
    kind.recipe: kind for kind in (kinds.Cifar10, kinds.Cifar100, kinds.Dtd, kinds.Dogs, kinds.Cub, kinds.Caltech256)
}


def prepared(task: str, folder: Path, **options: object) -> Prepared:
    return prepare(KINDS[task](source=folder / "in", output=str(folder / "out"), **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(("task", "classes", "train"), [("cifar10", 10, 100), ("cifar100", 100, 20)])
def test_cifar_keeps_every_pixel_label_and_class_name(task: str, classes: int, train: int, tmp_path: Path) -> None:
    archives.cifar(tmp_path / "in", classes=classes, used=10)
    prepared(task, tmp_path, unverified=True)
    table, test = (read_images(str(tmp_path / "out"), split) for split in ("train", "test"))
    assert (len(table), len(test)) == (train, 20)
    assert table.class_names == tuple(f"class {n}" for n in range(10))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    for row in (0, 13):
        image = np.array(decode_image(table.encoded(row), 3))
        assert np.array_equal(image, pixels[row].reshape(3, 32, 32).transpose(1, 2, 0))
    assert table.labels[:20].tolist() == [n % 10 for n in range(20)]
    assert any("80 Million" in overlap for overlap in table.card["known_overlaps"])
    assert table.card["provenance"].endswith("in files that were not verified")
    assert not examine_task(str(tmp_path / "out")).usable().train.failures


def test_pickles_that_are_not_the_published_ones_are_not_opened(tmp_path: Path) -> None:
    archives.cifar(tmp_path / "in")
    (tmp_path / "in" / "cifar-10-batches-py" / "batches.meta").write_bytes(pickle.dumps("another"))
    with pytest.raises(UserError, match=r"batches\.meta are not.*MD5.*--unverified") as refused:
        prepared("cifar10", tmp_path)
    assert "download" not in str(refused.value)
    shutil.rmtree(tmp_path / "in" / "cifar-10-batches-py")
    with pytest.raises(UserError, match=r"has no data_batch_1.*unpack cifar-10-python\.tar\.gz"):
        prepared("cifar10", tmp_path)


def test_dtd_trains_on_train_and_val_of_partition_1(tmp_path: Path) -> None:
    archives.dtd(tmp_path / "in")
    result = prepared("dtd", tmp_path)
    table, test = (read_images(str(tmp_path / "out"), split) for split in ("train", "test"))
    assert (len(table), len(test)) == (12, 6)
    assert table.class_names == archives.TEXTURES
    for split in (table, test):
        for row, row_id in enumerate(split.row_ids):
            assert archives.TEXTURES[split.labels[row]] == row_id.split("/")[0]
            assert split.encoded(row) == (tmp_path / "in" / "dtd" / "images" / row_id).read_bytes()
    assert "the published collection has 3,760 train images, this one 12" in result.table()


def test_released_dtd_has_57_outputs_and_is_labelled(tmp_path: Path) -> None:
    archives.dtd(tmp_path / "in")
    prepared("dtd", tmp_path, protocol="released")
    table = read_images(str(tmp_path / "out"), "train")
    assert len(table.class_names) == 57
    assert (table.protocol, table.card["protocol"]) == ("released", "released")
    assert table.card["task"] == "dtd-released"
    assert labelled_task("dtd", str(tmp_path / "out")) == "dtd-released"
    assert labelled_task("dtd-released", str(tmp_path / "out")) == "dtd-released"
    warnings = examine_task(str(tmp_path / "out")).usable().warnings
    assert any("released" in warning for warning in warnings)


@pytest.mark.parametrize("packed", [False, True])
def test_dogs_keep_the_official_split_and_say_that_they_are_from_imagenet(packed: bool, tmp_path: Path) -> None:
    archives.dogs(tmp_path / "in", packed=packed)
    result = prepared("dogs", tmp_path)
    table, test = (read_images(str(tmp_path / "out"), split) for split in ("train", "test"))
    assert table.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert test.labels.tolist() == [0, 0, 1, 1]
    assert table.class_names == ("Chihuahua", "Japanese_spaniel")
    images = tmp_path / "in" / ("unused" if packed else "Images")
    assert [test.encoded(row) for row in range(4)] == [(images / row_id).read_bytes() for row_id in test.row_ids]
    assert "ImageNet" in table.card["known_overlaps"][0]
    assert "known overlap: every image is from ImageNet" in result.table()


def test_birds_are_split_as_their_list_says(tmp_path: Path) -> None:
    archives.cub(tmp_path / "in")
    prepared("cub", tmp_path)
    table, test = (read_images(str(tmp_path / "out"), split) for split in ("train", "test"))
    assert Counter(table.labels.tolist()) == {0: 4, 1: 4, 2: 4}
    assert test.row_ids == tuple(f"{bird}/{bird[4:]}_0002_{n}.jpg" for n, bird in enumerate(archives.BIRDS, 1))
    assert test.class_names[1] == "Laysan_Albatross"


def test_caltech_tests_every_class_once_and_repeats_nothing(tmp_path: Path) -> None:
    archives.caltech256(tmp_path / "in")
    prepared("caltech256", tmp_path, test_fraction=0.25)
    table, test = (read_images(str(tmp_path / "out"), split) for split in ("train", "test"))
    assert set(test.labels.tolist()) == {0, 1, 2, 3}
    assert sorted(table.row_ids + test.row_ids) == sorted(
        path.relative_to(tmp_path / "in" / "256_ObjectCategories").as_posix() for path in tmp_path.rglob("*.jpg")
    )
    assert table.class_names == ("ak47", "american-flag", "backpack", "clutter")
    prepared("caltech256", tmp_path, test_fraction=0.25, clutter=False, overwrite=True)
    assert len(read_images(str(tmp_path / "out"), "test").class_names) == 3


def test_released_caltech_spills_into_the_next_class_and_leaks_with_a_warning(tmp_path: Path) -> None:
    archives.caltech256(tmp_path / "in")
    prepared("caltech256", tmp_path, protocol="released", train_per_class=8)
    table, test = (read_images(str(tmp_path / "out"), split) for split in ("train", "test"))
    # Classes of 6, 9, 7 and 12 images start at 0, 6, 15 and 22.
    assert table.labels.tolist() == [0] * 6 + [1] * 2 + [1] * 8 + [2] * 7 + [3] * 1 + [3] * 8
    assert Counter(test.labels.tolist()) == {1: 1, 3: 4}
    assert "002.american-flag/002_0001.jpg#2" in table.row_ids
    warnings = " ".join(examine_task(str(tmp_path / "out")).usable().warnings)
    assert "no image of 2 classes: ak47; backpack" in warnings
    assert "holds 3 copies" in warnings


def test_the_released_rule_gives_the_published_numbers_of_images() -> None:
    # 257 classes, 30,607 images, the last one of 827: 38,550 entries, and the images of no entry for testing.
    sizes = [80] * 128 + [154] * 100 + [148] * 28 + [827]
    labels = torch.repeat_interleave(torch.arange(257), torch.tensor(sizes))
    train, test = consecutive_split(labels, 150)
    assert len(train) == 257 * 150
    assert not set(train) & set(test)
    assert len(set(train)) + len(test) == len(labels)
    tested = Counter(labels[test].tolist())
    assert all(tested[label] == 0 for label, size in enumerate(sizes) if size <= 150)


def test_large_tasks_are_cut_into_numbered_files_with_the_whole_card(tmp_path: Path) -> None:
    archives.cub(tmp_path / "in", per_class=200)
    source = cub(kinds.Cub(source=tmp_path / "in", output=""))
    write_task(str(tmp_path / "out"), source, overwrite=False, shard_bytes=2**16)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["test.parquet", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    card = json.loads(pq.read_metadata(tmp_path / "out" / names[2]).metadata[b"card"])
    assert card["images"] == {"train": 402, "test": 198}
    assert len(read_images(str(tmp_path / "out"), "train")) == 402


def test_a_list_names_images_labels_and_splits(tmp_path: Path) -> None:
    lines = ["path,label,split"]
    for number in range(8):
        archives.jpeg(tmp_path, f"images/{number}.jpg", number)
        lines.append(f"images/{number}.jpg,{10 - number % 2},{'test' if number > 5 else 'train'}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    flags = ImageList(source=tmp_path / "list.csv", output=str(tmp_path / "out"), test_fraction=0.25, overwrite=True)
    prepare(flags)
    table = read_images(str(tmp_path / "out"), "train")
    assert (table.card["task"], table.class_names) == ("list", ("9", "10"))
    assert table.labels.tolist() == [1, 0, 1, 0, 1, 0]
    (tmp_path / "list.csv").write_text("\n".join(line.rpartition(",")[0].replace(",9", ", 9 ") for line in lines))
    prepare(flags)
    assert read_images(str(tmp_path / "out"), "test").labels.tolist() == [0, 1]


LISTS = {
    "no header": ("images/0.jpg,1\n", "its first line must name the columns path and label"),
    "no line": ("path,label\n", "names no image"),
    "an empty label": ("path,label\na.jpg,x\nb.jpg,\n", "line 3: path or label is empty"),
    "one label": ("path,label\na.jpg,x\nb.jpg,x\n", "has 1 labels"),
    "another split": ("path,label,split\na.jpg,x,val\n", 'line 2: split is "val"'),
    "no test": ("path,label,split\na.jpg,x,train\nb.jpg,y,train\n", "has no test image"),
    "a path twice": ("path,label\na.jpg,x\na.jpg,y\n", r'line 3: "a\.jpg" is there twice'),
    "a comma in a path": ("path,label\na.jpg,x\nb,c.jpg,y\n", "line 3: it has more values than the first line"),
    "an open quote": ('path,label\na.jpg,x\nb.jpg,"y\nc.jpg,x\n', "line 3: unexpected end of data. Is a quote not"),
    "two open quotes": ('path,label\na.jpg,"5 in\nb.jpg,"5 in\nc.jpg,x\n', r"line 2: .* expected after"),
    "a quoted line break": ('path,label\na.jpg,x\nb.jpg,"y\nz"\n', "line 3: label has a line break"),
    "a column twice": ("path,label,label\na.jpg,x,y\n", "the columns 'label', 'label' look alike"),
    "a capital column": ("path,label,Split\na.jpg,x,train\n", "the columns 'Split' look alike"),
    "a path in two ways": ("path,label\na.jpg,x\n./a.jpg,y\n", r'line 3: "\./a\.jpg" is there twice'),
    "labels that look alike": ("path,label\na.jpg,ant\nb.jpg,Ant\n", "class names 'Ant' and 'ant' look alike"),
    "a missing file": ("path,label,split\na.jpg,x,train\nb.jpg,y,test\n", "2 images cannot be decoded: .*b.jpg: "),
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_that_cannot_be_used_are_refused_with_the_line(case: str, tmp_path: Path) -> None:
    text, message = LISTS[case]
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        prepare(ImageList(source=tmp_path / "list.csv", output=str(tmp_path / "out")))
    assert "\n" not in str(caught.value)


def test_archives_that_are_incomplete_are_refused(tmp_path: Path) -> None:
    for task, message in (
        ("dtd", r"dtd-r1\.0\.1\.tar\.gz"),
        ("dogs", "images.tar"),
        ("cub", "images.txt"),
        ("caltech256", "256_ObjectCategories.tar"),
    ):
        (tmp_path / "in").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=message):
            prepared(task, tmp_path)
    archives.dogs(tmp_path / "in")
    (tmp_path / "in" / "test_list.mat").write_bytes(b"no mat file")
    with pytest.raises(UserError, match=r"test_list\.mat cannot be read"):
        prepared("dogs", tmp_path)
    archives.cub(tmp_path / "in")
    (tmp_path / "in" / "CUB_200_2011" / "classes.txt").write_text("1 001.Only\n")
    with pytest.raises(UserError, match="class 2 of image 6 has no name"):
        prepared("cub", tmp_path)
    split = tmp_path / "in" / "CUB_200_2011" / "train_test_split.txt"
    archives.cub(tmp_path / "in")
    split.write_text(split.read_text().replace("4 1", "4 x"))
    with pytest.raises(UserError, match="image 4 has x, not 0 or 1"):
        prepared("cub", tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        prepared("cub", tmp_path / "nowhere")


def test_a_damaged_image_of_an_archive_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    archives.caltech256(tmp_path / "in")
    path = next(tmp_path.rglob("003_0004.jpg"))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"003\.backpack/003_0004\.jpg: Truncated"):
        prepared("caltech256", tmp_path, test_fraction=0.25)
    assert not list((tmp_path / "out").glob("*"))
