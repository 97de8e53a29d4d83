"""What `read_images` refuses: each in one line that names the file, the row where there is one, and the way out."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distributed_autolora.data.parquet.digest import data_digest
from distributed_autolora.data.parquet.reader import read_images
from distributed_autolora.errors import UserError
from tests.data.pictures import encode, picture, rows_of, write

NAMES = {"class_names": json.dumps(["cat", "dog"])}


def raw(folder: Path, metadata: dict[str, str] | None = None, **columns: Any) -> None:
    content = {"image": [b"x", b"y"], "label": [0, 1], "row_id": ["a", "b"], **columns}
    table = pa.table({name: values for name, values in content.items() if values is not None})
    pq.write_table(table.replace_schema_metadata(NAMES if metadata is None else metadata), folder / "train.parquet")


def cut(folder: Path) -> None:
    path = write(folder, "train.parquet", rows_of([encode(picture(0))] * 3))
    path.write_bytes(path.read_bytes()[:-50])


def flipped_bit(folder: Path) -> None:
    path = write(folder, "train.parquet", rows_of([encode(picture(0, size=(64, 64)))] * 3))
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def two_shards(folder: Path) -> None:
    write(folder, "train-0.parquet", rows_of([b"x"]))
    write(folder, "train-1.parquet", rows_of([b"x"]), ["dog", "cat"])


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty folder": (lambda folder: None, r"has no train\*\.parquet; it holds: nothing\. autolora data prepare"),
    "other files": (lambda folder: (folder / "readme.txt").write_text(""), r"it holds: readme\.txt"),
    "not Parquet": (lambda folder: (folder / "train.parquet").write_text("cat"), r"train\.parquet cannot be read"),
    "nothing in it": (lambda folder: (folder / "train.parquet").touch(), r"train\.parquet cannot be read"),
    "cut off": (cut, r"train\.parquet cannot be read"),
    "flipped bit": (flipped_bit, r"train\.parquet cannot be read: .*(?i:checksum|crc)"),
    "no label": (lambda folder: raw(folder, label=None), r'train\.parquet has no column "label"'),
    "no image": (lambda folder: raw(folder, image=None), r'has no column "image" .*its columns: label, row_id'),
    "no row_id": (lambda folder: raw(folder, row_id=None), r'has no column "row_id"'),
    "labels as text": (lambda folder: raw(folder, label=["cat", "dog"]), r'"label" holds string, not whole numbers'),
    "images as text": (lambda folder: raw(folder, image=["a", "b"]), r'"image" holds string, not encoded image'),
    "label too large": (
        lambda folder: raw(folder, label=[0, 2]),
        r'row 1 \(row_id "b"\): label 2 is not one of 0 \.\. 1',
    ),
    "label negative": (lambda folder: raw(folder, label=[-1, 0]), r'row 0 \(row_id "a"\): label -1 is not'),
    "label null": (lambda folder: raw(folder, label=[0, None]), r"row 1 .*label null is not"),
    "image null": (lambda folder: raw(folder, image=[b"x", None]), r'row 1: "image" is empty'),
    "row_id null": (lambda folder: raw(folder, row_id=[None, "b"]), r'row 0: "row_id" is empty'),
    "no class names": (lambda folder: raw(folder, metadata={}), r"does not name its classes"),
    "broken class names": (lambda folder: raw(folder, metadata={"class_names": "[cat"}), r"does not name its classes"),
    "one class": (lambda folder: raw(folder, metadata={"class_names": '["cat"]'}), r"two or more"),
    "no rows": (lambda folder: write(folder, "train.parquet", []), r"train\.parquet holds no image"),
    "shards differ": (two_shards, r'train-0\.parquet and .*train-1\.parquet have .*label 0 is "cat" in one and "dog"'),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_files_are_refused_in_one_line_that_names_them(case: str, tmp_path: Path) -> None:
    prepare, message = CASES[case]
    prepare(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        read_images(str(tmp_path), "train")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_a_file_and_an_unknown_uri_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/none does not exist")):
        read_images(f"{tmp_path}/none", "train")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file: give a folder"):
        read_images(f"{tmp_path}/file", "train")
    with pytest.raises(UserError, match="ftpx://host/folder cannot be read"):
        read_images("ftpx://host/folder", "train")


def test_a_digest_needs_both_splits(tmp_path: Path) -> None:
    write(tmp_path, "train.parquet", rows_of([b"x"]))
    with pytest.raises(UserError, match=r"has no test\*\.parquet; it holds: train\.parquet"):
        data_digest(str(tmp_path))


def test_files_of_other_programs_may_order_and_store_the_columns_in_their_way(tmp_path: Path) -> None:
    columns = {
        "row_id": pa.array(["a", "b"], pa.large_string()),
        "extra": [1.0, 2.0],
        "label": pa.array([1, 0], pa.int8()),
        "image": pa.array([b"x", b"y"], pa.large_binary()),
    }
    pq.write_table(pa.table(columns).replace_schema_metadata(NAMES), tmp_path / "train-0.parquet")
    write(tmp_path, "train-1.parquet", rows_of([b"z"]))
    table = read_images(str(tmp_path), "train")
    assert table.labels.tolist() == [1, 0, 0]
    assert [table.encoded(row) for row in range(3)] == [b"x", b"y", b"z"]
    assert table.row_ids == ("a", "b", "id-0")


def test_one_of_several_numbered_files_must_not_be_missing_or_old(tmp_path: Path) -> None:
    rows = rows_of([encode(picture(number)) for number in range(6)])
    for number in range(3):
        write(tmp_path, f"train-{number:05d}-of-00003.parquet", rows[2 * number : 2 * number + 2])
    assert len(read_images(str(tmp_path), "train")) == 6
    write(tmp_path, "train.parquet", rows)
    with pytest.raises(UserError, match="holds two versions of train: train-00000-of-00003"):
        read_images(str(tmp_path), "train")
    (tmp_path / "train.parquet").unlink()
    (tmp_path / "train-00002-of-00003.parquet").unlink()
    with pytest.raises(UserError, match=r"lacks train-00002-of-00003\.parquet: copy all 3 files"):
        read_images(str(tmp_path), "train")
