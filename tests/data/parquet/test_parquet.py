import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from distributed_autolora.data.parquet.digest import data_digest
from distributed_autolora.data.parquet.locations import split_bytes, unpacked_bytes
from distributed_autolora.data.parquet.reader import check_same_classes, read_images
from distributed_autolora.data.parquet.writer import ROW_GROUP, ImageRow
from distributed_autolora.errors import UserError
from tests.data.pictures import encode, picture, rows_of, write, write_images

ROWS = rows_of([encode(picture(number)) for number in range(6)])


def test_bytes_labels_ids_and_metadata_come_back_as_they_were(tmp_path: Path) -> None:
    write(tmp_path, "train.parquet", ROWS, ["Kätzchen", 'a "dog"'])
    table = read_images(str(tmp_path), "train")
    assert [table.encoded(row) for row in range(6)] == [row.image for row in ROWS]
    assert table.labels.dtype == torch.int64
    assert table.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert table.row_ids == tuple(row.row_id for row in ROWS)
    assert table.class_names == ("Kätzchen", 'a "dog"')
    assert [table.card[key] for key in ("task", "licence", "provenance")] == ["pets", "CC0", "drawn"]
    assert len(table) == 6


def test_shards_are_read_in_the_order_of_their_names_and_rows_know_their_file(tmp_path: Path) -> None:
    write(tmp_path, "train-1.parquet", ROWS[2:])
    write(tmp_path, "train-0.parquet", ROWS[:2])
    write(tmp_path, "test.parquet", ROWS[:1])
    (tmp_path / ".train-2.parquet").write_bytes(b"left by another program")
    table = read_images(str(tmp_path), "train")
    assert table.row_ids == tuple(row.row_id for row in ROWS)
    assert table.encoded(5) == ROWS[5].image
    assert table.place(1) == f'{tmp_path}/train-0.parquet, row 1 (row_id "id-1")'
    assert table.place(2) == f'{tmp_path}/train-1.parquet, row 0 (row_id "id-2")'


def test_row_groups_have_256_rows_and_the_metadata_is_json(tmp_path: Path) -> None:
    path = write(tmp_path, "train.parquet", [ImageRow(b"x", 0, str(number)) for number in range(600)])
    metadata = pq.ParquetFile(path).metadata
    assert [metadata.row_group(group).num_rows for group in range(3)] == [ROW_GROUP, ROW_GROUP, 600 - 2 * ROW_GROUP]
    texts = {key.decode(): value for key, value in metadata.metadata.items() if key != b"ARROW:schema"}
    assert set(texts) == {"class_names", "task", "split", "licence", "provenance", "content_digest"}
    assert json.loads(texts["class_names"]) == ["cat", "dog"]


def test_a_uri_is_written_and_read_like_a_folder(tmp_path: Path) -> None:
    uri = tmp_path.as_uri()
    write_images(
        f"{uri}/new/train.parquet", ROWS, class_names=["a", "b"], task="t", split="train", licence="", provenance=""
    )
    assert read_images(f"{uri}/new", "train").row_ids == read_images(str(tmp_path / "new"), "train").row_ids


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, "train.parquet", ROWS)
    before = path.read_bytes()

    def interrupted() -> Iterator[ImageRow]:
        yield ROWS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_images(path, interrupted(), class_names=["a"], task="", split="train", licence="", provenance="")
    with pytest.raises(ValueError, match="label 2"):
        write(tmp_path, "train.parquet", [ImageRow(b"x", 2, "id")])
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["train.parquet"]


def test_the_digest_covers_the_bytes_of_both_splits_and_not_the_place(tmp_path: Path) -> None:
    digests = []
    for folder, train, test in (("a", ROWS, ROWS[:1]), ("b", ROWS, ROWS[:1]), ("c", ROWS[:5], ROWS[:1])):
        write(tmp_path / folder, "train.parquet", train)
        write(tmp_path / folder, "test.parquet", test)
        digests.append(data_digest(str(tmp_path / folder)))
    write(tmp_path / "b", "test.parquet", ROWS[:2])
    digests.append(data_digest(str(tmp_path / "b")))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_the_size_in_memory_counts_what_the_files_hold_compressed(tmp_path: Path) -> None:
    rows = rows_of([bytes(10_000)] * 100)
    write(tmp_path, "train-0.parquet", rows[:50])
    write(tmp_path, "train-1.parquet", rows[50:])
    assert split_bytes(str(tmp_path), "train") < 100_000
    assert 10_000 * 100 <= unpacked_bytes(str(tmp_path), "train") < 1.05 * 10_000 * 100


def test_train_and_test_must_name_the_same_classes(tmp_path: Path) -> None:
    write(tmp_path, "train.parquet", ROWS)
    write(tmp_path, "test.parquet", ROWS)
    check_same_classes(read_images(str(tmp_path), "train"), read_images(str(tmp_path), "test"))
    write(tmp_path, "test.parquet", ROWS, ["cat", "wolf"])
    with pytest.raises(UserError, match='label 1 is "dog" in one and "wolf" in the other'):
        check_same_classes(read_images(str(tmp_path), "train"), read_images(str(tmp_path), "test"))
    write(tmp_path, "test.parquet", ROWS, ["cat", "dog", "wolf"])
    with pytest.raises(UserError, match="2 classes and 3"):
        check_same_classes(read_images(str(tmp_path), "train"), read_images(str(tmp_path), "test"))
