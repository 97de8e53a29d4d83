"""The program jobs/prepare_data.py, from outside and by the functions that it calls."""

import gzip
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from distributed_autolora.data.catalog import embedded_folder
from distributed_autolora.data.images import ImageSource
from distributed_autolora.data.parquet.reader import check_same_classes, read_images
from distributed_autolora.data.preparation.flags import FashionMnist, Folder
from distributed_autolora.data.preparation.prepare import prepare
from distributed_autolora.data.preparation.write import Prepared
from distributed_autolora.errors import UserError
from tests.data.preparation.test_sources import IMAGES, LABELS, add, idx, write_idx
from tests.programs import program


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for name in ("cats", "dogs"):
        add(tmp_path / "my pets" / name, *(f"{n}.jpg" for n in range(10)))
    return tmp_path / "my pets"


def folder(source: Path, output: Path | str, *, overwrite: bool = False) -> Prepared:
    return prepare(Folder(source=source, output=str(output), overwrite=overwrite))


def mnist(source: Path, output: Path, classes: str, images: int | None = None, *, other: bool = False) -> Prepared:
    return prepare(
        FashionMnist(source=source, output=str(output), classes=classes, train_images=images, without_shipped=other)
    )


def test_ones_own_folder_becomes_a_task_that_trains(pets: Path, tmp_path: Path) -> None:
    output = tmp_path / "out put"
    (pets / "cats" / "notes.txt").write_text("Tom")
    done = program("jobs/prepare_data.py", "folder", "--source", pets, "--output", output, "--licence", "CC0")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[1].split()[:3] == ["train", "16", "2"]
    assert "not used, because of their endings: 1 files (1 .txt)" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("Next: python jobs/finetune.py --recipe custom --weights WEIGHTS")
    assert done.stdout.rstrip().endswith(f"--data '{output}'")
    train, test = read_images(str(output), "train"), read_images(str(output), "test")
    check_same_classes(train, test)
    assert (train.card["task"], train.card["licence"], train.class_names) == ("my pets", "CC0", ("cats", "dogs"))
    assert str(tmp_path) not in train.card["provenance"]
    assert train.encoded(0) == (pets / train.row_ids[0]).read_bytes()
    images = ImageSource(train, channels=3, image_size=32, resized=True)
    assert images.training_images(torch.arange(16), seed=0, epoch=0).shape == (16, 3, 32, 32)


def test_a_refusal_is_one_line_and_exit_status_2(pets: Path, tmp_path: Path) -> None:
    for name in ("bad.jpg", *(f"worse-{number}.jpg" for number in range(12))):
        (pets / "dogs" / name).write_bytes(b"no image")
    done = program("jobs/prepare_data.py", "folder", "--source", pets, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: 13 images cannot be decoded: ")
    assert "dogs/bad.jpg: not an image" in done.stderr
    assert all(f"dogs/worse-{number}.jpg: not an image" in done.stderr for number in range(12)), "all are named"
    assert not list((tmp_path / "out").glob("*"))


def test_existing_files_are_kept_unless_overwriting_is_asked_for(pets: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    folder(pets, output)
    before = (output / "train.parquet").read_bytes()
    (output / "train-old.parquet").write_bytes(b"of another task")
    add(pets / "rats", *(f"{n}.jpg" for n in range(10)))
    with pytest.raises(
        UserError, match=r"already holds test\.parquet, train-old\.parquet, train\.parquet: .*--overwrite"
    ):
        folder(pets, output)
    assert (output / "train.parquet").read_bytes() == before
    folder(pets, output, overwrite=True)
    assert read_images(str(output), "train").class_names == ("cats", "dogs", "rats")
    assert not (output / "train-old.parquet").exists()


def test_an_output_that_cannot_be_written_is_refused_before_reading_images(pets: Path, tmp_path: Path) -> None:
    (pets / "dogs" / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/out cannot be written: .*Choose a folder") as caught:
        folder(pets, tmp_path / "file" / "out")
    assert "\n" not in str(caught.value)


def test_a_uri_is_a_possible_output(pets: Path, tmp_path: Path) -> None:
    prepared = folder(pets, f"{tmp_path.as_uri()}/out")
    assert prepared.output == f"{tmp_path.as_uri()}/out"
    assert len(read_images(prepared.output, "test")) == 4


def test_classes_of_fashion_mnist_are_written_with_their_names(tmp_path: Path) -> None:
    write_idx(tmp_path / "idx")
    prepared = mnist(tmp_path / "idx", tmp_path / "out", "5-9", images=10)
    assert [(split.split, split.images, len(split.labels)) for split in prepared.splits] == [
        ("train", 10, 5),
        ("test", 30, 5),
    ]
    table = read_images(str(tmp_path / "out"), "train")
    assert table.card["task"] == "fashion-mnist-5-9"
    assert table.class_names == ("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
    assert "10 images of the training file, all images of the test file" in table.card["provenance"]
    mnist(tmp_path / "idx", tmp_path / "out2", "8,1")
    assert read_images(str(tmp_path / "out2"), "train").class_names == ("Bag", "Trouser")


def test_shipped_images_are_left_out_by_their_pixels_before_the_subset_is_drawn(tmp_path: Path) -> None:
    """Ten shipped images, of either split, come before sixty others in the test file; the training file has none."""
    shipped = [
        ImageSource(read_images(embedded_folder(), split), channels=1, image_size=None, resized=False).images(
            torch.arange(5)
        )[:, 0]
        for split in ("train", "test")
    ]
    pixels = np.concatenate([*(part.numpy() for part in shipped), IMAGES])
    labels = np.concatenate([np.tile(np.arange(5, 10, dtype=np.uint8), 2), LABELS])
    write_idx(tmp_path / "idx", images=idx(pixels), labels=idx(labels))
    (tmp_path / "idx" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(255 - pixels)))
    mnist(tmp_path / "idx", tmp_path / "all", "5-9")
    mnist(tmp_path / "idx", tmp_path / "out", "5-9", other=True)
    assert len(read_images(str(tmp_path / "all"), "test")) == 40
    table = read_images(str(tmp_path / "out"), "test")
    assert [int(row_id.rpartition("/")[2]) for row_id in table.row_ids] == [n for n in range(10, 70) if n % 10 >= 5]
    assert table.card["task"] == "fashion-mnist-5-9-other"
    assert "without the images that are shipped" in table.card["provenance"]
    with pytest.raises(UserError, match=r"41 train .* 1 to 40 of these classes that are not left out"):
        mnist(tmp_path / "idx", tmp_path / "out2", "5-9", images=41, other=True)


@pytest.mark.parametrize("classes", ["", "5", "5-5", "9-5", "5-10", "1,1", "1,2,", "shoes", "-3", "1-2-3"])
def test_classes_that_are_none_are_refused(classes: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--classes is"):
        mnist(write_idx(tmp_path / "idx"), tmp_path / "out", classes)


def test_a_row_group_has_no_more_bytes_than_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        add(tmp_path / "in" / name, *(f"{number}.jpg" for number in range(40)))
    largest = max(file.stat().st_size for file in (tmp_path / "in").rglob("*.jpg"))
    monkeypatch.setattr("distributed_autolora.data.preparation.write.ROW_GROUP_BYTES", 5 * largest)
    folder(tmp_path / "in", tmp_path / "out")
    found = pq.ParquetFile(tmp_path / "out" / "train.parquet")
    groups = [found.read_row_group(number)["image"].to_pylist() for number in range(found.num_row_groups)]
    assert len(groups) > 10
    assert max(sum(map(len, images)) for images in groups) < 6 * largest
    assert sum(map(len, groups)) == 64


def test_a_limit_that_the_source_cannot_meet_keeps_the_output_untouched(tmp_path: Path) -> None:
    for images in (0, 31):
        with pytest.raises(UserError, match=f"{images} train images were asked for: .* has 1 to 30"):
            mnist(write_idx(tmp_path / "idx"), tmp_path / "out", "5-9", images=images)
    assert not (tmp_path / "out").exists()
