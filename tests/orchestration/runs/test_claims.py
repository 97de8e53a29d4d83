"""A name is claimed before anything slow, by one process at a time."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest

from distributed_autolora.config import RunConfig
from distributed_autolora.data.preparation.flags import Folder
from distributed_autolora.data.preparation.prepare import prepare
from distributed_autolora.errors import UserError
from distributed_autolora.files import claimed
from distributed_autolora.orchestration.runs.train import train_run
from tests.data.preparation.formats import write_folder
from tests.training.tasks import small_config, write_task

WORDS = {"what": 'Run "a"', "otherwise": "give another --run.name", "elsewhere": "--run.output"}
HOLD = (
    "import sys, time; from pathlib import Path; from distributed_autolora.files import claimed\n"
    "with claimed(Path(sys.argv[1]), what='', otherwise='', elsewhere=''): print('held', flush=True); time.sleep(60)"
)


def test_of_many_that_claim_a_name_at_once_one_has_it(tmp_path: Path) -> None:
    barrier = Barrier(8, timeout=60)

    def attempt(_number: int) -> bool:
        barrier.wait()
        try:
            with claimed(tmp_path / "name", **WORDS):
                barrier.wait()
        except UserError:
            barrier.wait()
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        for _ in range(50):
            assert sum(threads.map(attempt, range(8))) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_is_followed_on_its_node_and_named_on_another(tmp_path: Path) -> None:
    file = tmp_path / "name"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {holder.pid} on"), claimed(file, **WORDS):
            pass
        holder.kill()
    with claimed(file, **WORDS):
        pass
    assert not file.exists()
    file.write_text("process 7 on another-node\n")
    with pytest.raises(UserError, match=r"process 7 on another-node\. If that process is gone, remove "):
        claimed(file, **WORDS).__enter__()
    assert file.exists()


def test_a_command_that_is_given_twice_is_refused_before_ray_starts(tmp_path: Path) -> None:
    config = replace(
        small_config(write_task(tmp_path / "task", train=60)), run=RunConfig(name="same", output=str(tmp_path))
    )
    (tmp_path / "runs").mkdir()
    with (
        claimed(tmp_path / "runs" / ".same.starting", **WORDS),
        pytest.raises(UserError, match='"same" is in use'),
    ):
        train_run(config)
    assert not (tmp_path / "runs" / "same").exists()


def test_one_preparation_at_a_time_writes_to_a_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "in")
    (tmp_path / "out").mkdir()
    flags = Folder(source=tmp_path / "in", output=str(tmp_path / "out"))
    with claimed(tmp_path / "out" / ".preparing", **WORDS), pytest.raises(UserError, match="out is in use by"):
        prepare(flags)
    assert list((tmp_path / "out").iterdir()) == []
    prepare(flags)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["test.parquet", "train.parquet"]
