"""Every part of the benchmark of large datasets runs, and holds at least its libraries."""

from pathlib import Path

import pytest

from benchmarks.dataset_size import Flags, measure


@pytest.mark.long
def test_each_part_takes_time_and_memory_and_the_files_become_a_task(tmp_path: Path) -> None:
    parts = measure(Flags(images=200, classes=4, work=tmp_path))["parts"]
    assert [path.name for path in sorted((tmp_path / "task").iterdir())] == ["test.parquet", "train.parquet"]
    assert all(part["peak_mib"] > 100 and part["seconds"] > 0 for part in parts.values())
