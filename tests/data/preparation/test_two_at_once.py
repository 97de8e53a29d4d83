"""Of two preparations into one folder or URI at once one is refused in a line, and the other ends as if alone."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from distributed_autolora.data.parquet.writer import ImageRow, SplitWriter
from distributed_autolora.data.preparation.flags import Folder
from distributed_autolora.data.preparation.image_folder import image_folder
from distributed_autolora.data.preparation.prepare import prepare
from distributed_autolora.data.preparation.source import SourceRow
from distributed_autolora.data.preparation.write import write_task
from distributed_autolora.errors import UserError
from tests.data.preparation.formats import write_folder
from tests.programs import ROOT, environment, program, wait_for

PLACES = {"folder": "{}", "URI of a folder": "file://{}", "object store": "fsspec+file://{}"}
"""pyarrow treats the last as any store: it is no local filesystem to it."""


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.long
@pytest.mark.parametrize("place", PLACES)
def test_one_that_begins_while_another_works_is_refused(place: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "one", per_class=150)
    write_folder(tmp_path / "other", per_class=12)
    prepare(Folder(source=tmp_path / "one", output=str(tmp_path / "alone")))
    (tmp_path / "out").mkdir()
    words = ["jobs/prepare_data.py", "folder", "--output", PLACES[place].format(tmp_path / "out"), "--source"]
    first = subprocess.Popen(
        [sys.executable, *words, str(tmp_path / "one")], cwd=ROOT, env=environment(tmp_path), stdout=subprocess.DEVNULL
    )
    wait_for(lambda: (tmp_path / "out" / ".preparing").exists() or first.poll() is not None, "a claim")
    os.kill(first.pid, signal.SIGSTOP)
    try:
        second = program(*words, tmp_path / "other", "--overwrite")
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert first.wait(timeout=60) == 0
    assert (second.returncode, second.stdout, second.stderr.count("\n")) == (2, "", 1)
    assert f"out is in use by process {first.pid} on" in second.stderr
    assert files(tmp_path / "out") == files(tmp_path / "alone")


def test_of_two_that_claim_an_object_store_in_the_same_moment_one_is_refused_before_its_files_appear(
    tmp_path: Path,
) -> None:
    write_folder(tmp_path / "in")
    store = PLACES["object store"].format(tmp_path / "out")
    flags = Folder(source=tmp_path / "in", output=store)
    task = image_folder(flags)
    claim = f"process {os.getppid()} on {os.uname().nodename}, {'0' * 32}"
    row = task.rows["train"][0]

    def other_begins() -> bytes:
        (tmp_path / "out" / ".preparing").write_text(claim)
        return row.load()

    late = SourceRow(other_begins, row.label, row.row_id, row.where)
    rows = {**task.rows, "train": [late, *list(task.rows["train"])[1:]]}
    with pytest.raises(UserError, match="out is in use by process") as refusal:
        write_task(store, replace(task, rows=rows, seen=None), overwrite=False)
    assert "\n" not in str(refusal.value)
    assert files(tmp_path / "out") == {".preparing": claim.encode()}


def test_the_claim_of_a_killed_process_is_taken_over_and_that_of_another_node_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "in")
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    (tmp_path / "out").mkdir()
    flags = Folder(source=tmp_path / "in", output=PLACES["object store"].format(tmp_path / "out"))
    claim = tmp_path / "out" / ".preparing"
    claim.write_text(f"process {ended.pid} on another-node, {'0' * 32}")
    with pytest.raises(UserError, match=r"another-node, 0+\. Wait for it; or, .* remove .*/out/\.preparing"):
        prepare(flags)
    claim.write_text(f"process {ended.pid} on {os.uname().nodename}, {'0' * 32}")
    prepare(flags)
    assert sorted(files(tmp_path / "out")) == ["test.parquet", "train.parquet"]


def test_what_a_killed_preparation_had_begun_is_removed_by_the_next(tmp_path: Path) -> None:
    write_folder(tmp_path / "in")
    killed = SplitWriter(str(tmp_path / "out"), "train", 2)
    killed.write([ImageRow(b"", 0, "a")])
    (begun,) = (tmp_path / "out").iterdir()
    assert begun.suffix == ".partial"
    prepare(Folder(source=tmp_path / "in", output=str(tmp_path / "out")))
    assert sorted(files(tmp_path / "out")) == ["test.parquet", "train.parquet"]
