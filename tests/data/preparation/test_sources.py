import gzip
import os
import struct
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest

from distributed_autolora.data.class_names import look_alikes
from distributed_autolora.data.decoding import decode_image
from distributed_autolora.data.preparation.csv_list import image_list
from distributed_autolora.data.preparation.fashion_mnist import FASHION_MNIST_CLASSES, fashion_mnist
from distributed_autolora.data.preparation.flags import Folder, ImageList
from distributed_autolora.data.preparation.image_folder import image_folder
from distributed_autolora.data.preparation.prepare import prepare
from distributed_autolora.data.preparation.source import SourceTask
from distributed_autolora.errors import UserError
from tests.data.pictures import encode, picture

LABELS = np.arange(60, dtype=np.uint8) % 10
IMAGES = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)


def idx(values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write_idx(folder: Path, *, zipped: bool = True, images: bytes = idx(IMAGES), labels: bytes = idx(LABELS)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for prefix in ("train", "t10k"):
        for name, given in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{prefix}-{name}-ubyte"
            # No image is in both splits.
            content = idx(255 - IMAGES) if (prefix, given) == ("train", idx(IMAGES)) else given
            if zipped:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)
    return folder


@pytest.mark.parametrize(("below", "zipped"), [(".", True), (".", False), ("FashionMNIST/raw", False)])
def test_idx_files_become_rows_with_new_labels_and_old_positions(tmp_path: Path, below: str, zipped: bool) -> None:
    write_idx(tmp_path / below, zipped=zipped)
    rows = list(fashion_mnist(tmp_path, "test", classes=range(5, 10), limit=None, seed=0))
    assert [row.row_id for row in rows[:6]] == [f"test/{n:05d}" for n in (5, 6, 7, 8, 9, 15)]
    assert [row.label for row in rows[:6]] == [0, 1, 2, 3, 4, 0]
    assert len(rows) == 30
    assert np.array_equal(np.array(decode_image(rows[5].load(), 1)), IMAGES[15])


def test_a_limit_takes_a_stratified_subset_that_the_seed_decides(tmp_path: Path) -> None:
    write_idx(tmp_path)
    first, again, other = (
        list(fashion_mnist(tmp_path, "train", classes=(8, 1), limit=6, seed=seed)) for seed in (0, 0, 1)
    )
    assert [row.label for row in first].count(0) == 3
    assert [row.row_id for row in first] == [row.row_id for row in again]
    assert [row.row_id for row in first] != [row.row_id for row in other]
    assert len(FASHION_MNIST_CLASSES) == 10


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"images": b"\x00\x00\x0d\x03" + bytes(12)}, "images-idx3-ubyte.gz is no IDX file of bytes in 3 dimensions"),
        ({"images": idx(IMAGES)[:-1]}, "damaged"),
        ({"images": b"\x00\x00\x08\x03\x00"}, "damaged"),
        ({"labels": idx(LABELS[:-1])}, "60 train images but 59 labels"),
        ({"labels": b""}, "labels-idx1-ubyte.gz is no IDX file"),
    ],
    ids=["wrong magic", "truncated", "cut header", "fewer labels", "empty"],
)
def test_damaged_idx_files_are_refused(tmp_path: Path, damage: dict[str, bytes], message: str) -> None:
    write_idx(tmp_path, **damage)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        fashion_mnist(tmp_path, "train", classes=range(10), limit=None, seed=0)


def test_missing_and_broken_archives_and_large_limits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no train-images-idx3-ubyte"):
        fashion_mnist(tmp_path, "train", classes=range(10), limit=None, seed=0)
    write_idx(tmp_path)
    with pytest.raises(UserError, match="61 train images were asked for"):
        fashion_mnist(tmp_path, "train", classes=range(10), limit=61, seed=0)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    for content in (b"no gzip", path.read_bytes()[:-100]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"images-idx3-ubyte\.gz cannot be read"):
            fashion_mnist(tmp_path, "train", classes=range(10), limit=None, seed=0)


def add(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(picture(zlib.crc32(f"{folder}/{name}".encode())), "JPEG"))
    return folder


def read(folder: Path, test_fraction: float, seed: int) -> SourceTask:
    return image_folder(Folder(source=folder, output="", test_fraction=test_fraction, seed=seed))


def test_a_folder_a_class_is_split_into_train_and_test(tmp_path: Path) -> None:
    add(tmp_path / "cats", *(f"{n}.jpg" for n in range(10)))
    add(tmp_path / "ants", *(f"sub/{n}.JPEG" for n in range(20)))
    images = read(tmp_path, 0.2, 0)
    assert images.class_names == ["ants", "cats"]
    train, test = list(images.rows["train"]), list(images.rows["test"])
    assert [row.label for row in test] == [0, 0, 0, 0, 1, 1]
    assert len(train) == 24
    assert not {row.row_id for row in train} & {row.row_id for row in test}
    assert train[0].row_id.startswith("ants/sub/")
    assert all(row.load() == (tmp_path / row.row_id).read_bytes() for row in train + test)
    ids = [row.row_id for row in test]
    assert ids == [row.row_id for row in read(tmp_path, 0.2, 0).rows["test"]]
    assert ids != [row.row_id for row in read(tmp_path, 0.2, 1).rows["test"]]


def test_an_official_split_is_kept(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2), ("val", 1)):
        for name in ("a", "b"):
            add(tmp_path / split / name, *(f"{n}.png" for n in range(count)))
    images = read(tmp_path, 0.2, 0)
    assert [row.row_id for row in images.rows["test"]] == [f"test/{name}/{n}.png" for name in "ab" for n in (0, 1)]
    assert len(images.rows["train"]) == 6
    assert images.notes == ("not used: val (2 files)",)


def test_hidden_files_are_passed_over_and_others_counted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        add(tmp_path / name, "1.jpg", "2.jpg", "._1.jpg", "Thumbs.db", ".cache/3.jpg")
    add(tmp_path, "README.md")
    add(tmp_path / "__MACOSX", "1.jpg")
    images = read(tmp_path, 0.5, 0)
    assert len(images.rows["train"]) + len(images.rows["test"]) == 4
    add(tmp_path, "beside.jpg")
    images = read(tmp_path, 0.5, 0)
    assert images.notes == (
        "not used, because of their endings: 3 files (2 .db, 1 .md)",
        "not used, because they are hidden: 5 files",
        "not used, because they are in no class's folder: 1 files",
    )
    files = sum(path.is_file() for path in tmp_path.rglob("*"))
    assert (images.seen, images.not_used) == (files, files - 4)


@pytest.mark.parametrize("place", ["a/loop", "a/sub/loop", "c", "b/whole"])
def test_a_folder_that_links_lead_to_twice_is_refused(tmp_path: Path, place: str) -> None:
    for name in ("a", "b"):
        add(tmp_path / name, "1.jpg", "2.jpg", "sub/3.jpg")
    (tmp_path / place).symlink_to(tmp_path if place == "b/whole" else tmp_path / "a", target_is_directory=True)
    with pytest.raises(UserError, match=r"is the same folder as .*, by a link"):
        read(tmp_path, 0.5, 0)


def test_a_class_may_be_a_link_and_what_is_no_file_is_named(tmp_path: Path) -> None:
    add(tmp_path / "elsewhere", "1.jpg", "2.jpg", "3.jpg")
    add(tmp_path / "in" / "b", "1.jpg", "2.jpg", "3.jpg")
    (tmp_path / "in" / "a").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert len(read(tmp_path / "in", 0.5, 0).rows["train"]) == 3
    os.mkfifo(tmp_path / "in" / "b" / "4.jpg")
    with pytest.raises(UserError, match=r"4\.jpg: it is no file"):
        prepare(Folder(source=tmp_path / "in", output=str(tmp_path / "out")))


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"K\xe4se/1.png"])
def test_a_name_that_is_not_utf_8_is_refused_and_shown(tmp_path: Path, name: bytes) -> None:
    for folder in ("a", "b"):
        add(tmp_path / folder, "1.jpg", "2.jpg", "3.jpg")
    path = os.path.join(os.fsencode(tmp_path), b"" if b"/" in name else b"a", name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(encode(picture(0)))
    with pytest.raises(UserError, match=r"\\udce.* is not UTF-8: rename"):
        read(tmp_path, 0.5, 0)


def test_a_class_without_a_test_image_is_mentioned(tmp_path: Path) -> None:
    add(tmp_path / "a", *(f"{n}.jpg" for n in range(10)))
    add(tmp_path / "b", "only.jpg")
    assert read(tmp_path, 0.2, 0).notes == ("no test image of: b",)


def test_folders_and_lists_have_the_same_order_of_classes(tmp_path: Path) -> None:
    for order in (["0", "1", "9", "10"], ["10", "9", "B", "a", "\u00e4"]):
        root = tmp_path / order[0]
        for name in order:
            add(root / name, "1.jpg", "2.jpg", "3.jpg")
        lines = [f"{name}/{number}.jpg,{name}\n" for number in "12" for name in reversed(order)]
        (root / "list.csv").write_text("".join(["path,label\n", *lines]))
        listed = image_list(ImageList(source=root / "list.csv", output="", test_fraction=0.5))
        assert read(root, 0.5, 0).class_names == listed.class_names == order


@pytest.mark.parametrize("twin", ["Ant", "ant ", "ant\u200b", "\uff41nt"])
def test_class_names_that_look_alike_are_refused(tmp_path: Path, twin: str) -> None:
    for name in ("ant", twin, "bee"):
        add(tmp_path / name, "1.jpg", "2.jpg")
    with pytest.raises(UserError, match="look alike"):
        read(tmp_path, 0.5, 0)
    assert look_alikes(["1", "10", "01"]) == [("1", "01")]
    assert look_alikes([unicodedata.normalize(form, "K\u00e4se") for form in ("NFC", "NFD")]) != []
    assert not look_alikes(["crane", "Cranes", "1 a", "1a"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("a/1.jpg", "has 1 folder: two or more"),
        ("1.jpg", "has 0 folders"),
        ("a/1.jpg b/x.txt", "b holds no image"),
        ("train/a/1.jpg", "has train but not both train and test"),
        ("train/a/1.jpg val/a/1.jpg", "has train, val but not both"),
        ("Train/a/1.jpg Test/a/1.jpg", "has Test, Train but not both train and test: add or rename them"),
        ("train/a/1.jpg train/b/1.jpg test/a/1.jpg", 'class "b" is in train but not in test'),
        ("a/1.jpg b/1.jpg", "2 images are too few"),
    ],
)
def test_folders_that_are_no_task_are_refused(files: str, message: str, tmp_path: Path) -> None:
    add(tmp_path, *files.split())
    with pytest.raises(UserError, match=message):
        read(tmp_path, 0.2, 0)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 20.0])
def test_an_impossible_test_share_is_refused(share: float, tmp_path: Path) -> None:
    add(tmp_path, "a/1.jpg", "b/1.jpg")
    with pytest.raises(UserError, match="between 0 and 1"):
        read(tmp_path, share, 0)
