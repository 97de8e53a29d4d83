"""The mapped file of a split: what it gives back, who writes it, and what happens when it cannot be used."""

import multiprocessing
import resource
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distributed_autolora.data.parquet.digest import data_digest
from distributed_autolora.data.parquet.node_cache import cache_folder, mapped_images
from distributed_autolora.data.parquet.reader import ImageTable, read_images
from distributed_autolora.errors import UserError
from tests.data.pictures import encode, picture, rows_of, write

IMAGES = [encode(picture(number)) for number in range(300)]


@pytest.fixture
def task(tmp_path: Path) -> str:
    write(tmp_path / "task", "train-0.parquet", rows_of(IMAGES[:260]))
    write(tmp_path / "task", "train-1.parquet", rows_of(IMAGES[260:280]))
    write(tmp_path / "task", "test.parquet", rows_of(IMAGES[280:]))
    return str(tmp_path / "task")


def mapped(task: str, split: str = "train") -> ImageTable:
    return mapped_images(task, split, digest=None, cache=str(Path(task).parent / "cache"))


def only_file(task: str) -> Path:
    return next((Path(task).parent / "cache").glob("*.arrow"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_mapped_table_is_the_table_in_memory(task: str, split: str) -> None:
    one, other = read_images(task, split), mapped(task, split)
    assert [one.encoded(row) for row in range(len(one))] == [other.encoded(row) for row in range(len(other))]
    assert torch.equal(one.labels, other.labels)
    assert torch.equal(one.fingerprints, other.fingerprints)
    assert (one.row_ids, one.class_names, one.files, one.where) == (
        other.row_ids,
        other.class_names,
        other.files,
        other.where,
    )
    assert one.place(len(one) - 1) == other.place(len(one) - 1)


def test_the_file_is_written_once_and_named_by_the_digest(task: str) -> None:
    mapped(task)
    path = only_file(task)
    assert path.name == f"{data_digest(task)[:32]}-train.arrow"
    written = path.stat().st_mtime_ns
    mapped(task)
    assert path.stat().st_mtime_ns == written
    assert sorted(file.suffix for file in path.parent.iterdir()) == [".arrow", ".lock"]


@pytest.mark.parametrize("content", [b"", b"ARROW1 but not more", None], ids=["empty", "junk", "cut short"])
def test_a_file_that_was_not_written_whole_is_written_again(content: bytes | None, task: str) -> None:
    mapped(task)
    path = only_file(task)
    path.write_bytes(path.read_bytes()[:-1000] if content is None else content)
    assert mapped(task).encoded(279) == IMAGES[279]


def test_a_changed_byte_is_noticed_when_its_image_is_read_and_mended_by_the_next_start(task: str) -> None:
    mapped(task)
    path = only_file(task)
    content = bytearray(path.read_bytes())
    place = content.index(IMAGES[7]) + 30
    content[place] ^= 1
    path.write_bytes(content)
    table = mapped(task)
    assert table.encoded(6) == IMAGES[6]
    with pytest.raises(UserError, match=r"was damaged at row 7 and has been removed: the same command"):
        table.encoded(7)
    assert mapped(task).encoded(7) == IMAGES[7]


def test_a_full_disk_is_told_with_the_way_out_and_leaves_nothing(task: str) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        said = pool.apply(_write_with_little_room, (task,))
    assert "cannot be written: " in said
    assert "GB are free" in said
    assert "--scaling.cache" in said
    assert [file.suffix for file in (Path(task).parent / "cache").iterdir()] == [".lock"]


def _write_with_little_room(task: str) -> str:
    import signal

    # The system then answers a write beyond the limit with an error, as it does on a full disk.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    try:
        mapped(task)
    except UserError as error:
        return str(error)
    return "written"


def test_a_cache_that_is_no_folder_is_refused(task: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/cache cannot be written: .*--scaling\.cache"):
        mapped_images(task, "train", digest=None, cache=str(tmp_path / "file" / "cache"))


def test_without_a_choice_the_cache_is_this_users_own_in_the_temporary_folder() -> None:
    folder = cache_folder(None)
    assert folder.name.startswith("distributed_autolora-")
    assert folder.stat().st_mode & 0o777 == 0o700


def test_many_at_once_write_one_file_and_all_read_it(task: str) -> None:
    start, tables = threading.Barrier(6), []

    def open_it() -> None:
        start.wait()
        tables.append(mapped(task))

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [table.encoded(279) for table in tables] == [IMAGES[279]] * 6
    assert len({table.encoded_images.images.chunk(0).buffers()[2].size for table in tables}) == 1
    assert len(list((Path(task).parent / "cache").glob("*"))) == 2


def test_labels_of_other_files_are_not_given_to_cached_images(task: str) -> None:
    digest = data_digest(task)
    cache = str(Path(task).parent / "cache")
    mapped_images(task, "test", digest=digest, cache=cache)
    turned = [replace(row, label=1 - row.label) for row in rows_of(IMAGES[280:])]
    write(Path(task), "test.parquet", turned)
    with pytest.raises(UserError, match="are not those that the run was created with"):
        mapped_images(task, "test", digest=digest, cache=cache)
