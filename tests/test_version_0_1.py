"""A run of version 0.1 in the output folder is refused in one clear line."""

import shutil
from pathlib import Path

import pytest

from tests.programs import program

RUN = Path(__file__).with_name("run_of_version_0_1")
"""Its small files: a demo of version 0.1, with the records of two epochs."""


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_run_of_version_0_1_is_found_by_its_digest_and_refused_in_one_line(is_finished: bool, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "demo-1"
    shutil.copytree(RUN, folder, ignore=None if is_finished else shutil.ignore_patterns("result.json"))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    flags = ("--recipe", "demo", "--run.name", "demo-1", "--evaluate", "none")
    done = program("jobs/finetune.py", *flags, DISTRIBUTED_AUTOLORA_HOME=str(tmp_path))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for part in ("demo-1", "0.1", "--fresh"):
        assert part in done.stderr
    assert {name: (folder / name).read_bytes() for name in before} == before
