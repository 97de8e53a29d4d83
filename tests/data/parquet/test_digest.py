"""The digest of files that did not change is remembered; any change is noticed."""

import os
import shutil
from pathlib import Path

from distributed_autolora.data.parquet.digest import data_digest
from tests.training.tasks import write_task


def known(folder: Path, kept: Path) -> str:
    """Returns the digest as a start finds it that comes long after the last change of the files."""
    return data_digest(str(folder), kept, many_bytes=1, settled_s=0.0)


def with_times_of(path: Path, other: Path) -> None:
    times = other.stat()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_files_that_did_not_change_are_not_hashed_again(tmp_path: Path) -> None:
    folder, kept = Path(write_task(tmp_path / "task", train=60)), tmp_path / "kept"
    digest = data_digest(str(folder))
    assert data_digest(str(folder), kept) == digest
    assert not kept.exists(), "small files are hashed in no time"
    assert known(folder, kept) == digest
    (file,) = kept.iterdir()
    file.write_text(file.read_text().replace(digest, "as kept"))
    assert known(folder, kept) == "as kept"
    file.write_text(file.read_text()[:-3])
    assert known(folder, kept) == digest


def test_a_changed_file_is_hashed_again_also_with_its_old_size_and_time(tmp_path: Path) -> None:
    folder, kept = Path(write_task(tmp_path / "task", train=60)), tmp_path / "kept"
    train, copy = folder / "train.parquet", tmp_path / "copy"
    shutil.copy2(train, copy)
    other = bytearray(copy.read_bytes())
    other[1000] ^= 1
    first = known(folder, kept)

    train.write_bytes(other)
    with_times_of(train, copy)
    assert (train.stat().st_size, train.stat().st_mtime_ns) == (copy.stat().st_size, copy.stat().st_mtime_ns)
    second = known(folder, kept)
    assert second == data_digest(str(folder)) != first

    copy.replace(train)
    assert known(folder, kept) == first
    shutil.copy(train, folder / "train-more.parquet")
    assert known(folder, kept) == data_digest(str(folder)) != first
    shutil.move(folder, tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", folder)
    assert known(folder, kept) == data_digest(str(folder))


def test_the_digest_of_files_that_changed_a_moment_ago_is_not_kept(tmp_path: Path) -> None:
    folder, kept = Path(write_task(tmp_path / "task", train=60)), tmp_path / "kept"
    digest = data_digest(str(folder), kept, many_bytes=1, settled_s=3600.0)
    assert digest == data_digest(str(folder))
    assert not kept.exists()
