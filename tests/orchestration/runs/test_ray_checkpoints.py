"""Half a list of checkpoints does not end a run."""

import json
from pathlib import Path

from distributed_autolora.orchestration.runs.ray_checkpoints import copy_index, remove_unregistered, restore_index


def snapshot_of(run: Path) -> Path:
    (run / "train").mkdir()
    return run / "train" / "checkpoint_manager_snapshot.json"


def test_a_half_written_snapshot_is_replaced_by_the_last_whole_one(tmp_path: Path) -> None:
    snapshot = snapshot_of(tmp_path)
    snapshot.write_text('{"epoch": 1}')
    copy_index(tmp_path)
    snapshot.write_text('{"epo')
    copy_index(tmp_path)
    restore_index(tmp_path)
    assert json.loads(snapshot.read_text()) == {"epoch": 1}


def test_a_whole_snapshot_newer_than_its_copy_is_left_alone(tmp_path: Path) -> None:
    snapshot = snapshot_of(tmp_path)
    snapshot.write_text('{"epoch": 1}')
    copy_index(tmp_path)
    snapshot.write_text('{"epoch": 2}')
    restore_index(tmp_path)
    assert snapshot.read_text() == '{"epoch": 2}'


def test_without_a_copy_a_broken_snapshot_goes_and_a_missing_one_is_no_error(tmp_path: Path) -> None:
    snapshot = snapshot_of(tmp_path)
    restore_index(tmp_path)
    snapshot.write_text("")
    restore_index(tmp_path)
    assert not snapshot.exists()


def test_only_checkpoints_that_are_not_on_the_list_are_removed(tmp_path: Path) -> None:
    snapshot = snapshot_of(tmp_path)
    for name in ("checkpoint_000001", "checkpoint_000001_step_000020", "other"):
        (snapshot.parent / name).mkdir()
    remove_unregistered(tmp_path)
    assert len(list(snapshot.parent.iterdir())) == 3, "without a list nothing is known"
    snapshot.write_text('{"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_000001_step_000020"}]}')
    remove_unregistered(tmp_path)
    assert sorted(path.name for path in snapshot.parent.glob("*/")) == ["checkpoint_000001_step_000020", "other"]
