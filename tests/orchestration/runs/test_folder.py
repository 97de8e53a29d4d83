"""A run has a name, an identity and one live process that holds it; half a list of checkpoints does not end it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.config.recipes import recipe
from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.orchestration.runs.names import find_run, newest_run, next_run, run_name, with_precision
from distributed_autolora.orchestration.runs.ray_checkpoints import copy_index, remove_unregistered, restore_index

PRECISIONS = ["bfloat16", "float32"]


def demo(home: Path, seed: int = 0, name: str | None = None) -> ExperimentConfig:
    config = recipe("demo")
    return replace(config, seed=seed, run=replace(config.run, output=str(home), name=name))


def create(home: Path, config: ExperimentConfig, precision: str) -> RunFolder:
    chosen = with_precision(config, precision)
    folder = next_run(home, run_name(chosen))
    folder.path.mkdir(parents=True)
    folder.create(chosen, run_name(chosen))
    return folder


def test_the_name_is_recipe_digest_and_seed(tmp_path: Path) -> None:
    config = with_precision(demo(tmp_path, seed=3), "float32")
    assert run_name(config) == f"demo-{config.digest()[:8]}-seed3"
    assert run_name(replace(config, run=replace(config.run, name="mine"))) == "mine"


def test_runs_of_one_name_are_numbered(tmp_path: Path) -> None:
    config = demo(tmp_path, name="mine")
    assert [create(tmp_path, config, "float32").name for _ in range(3)] == ["mine", "mine-2", "mine-3"]
    assert newest_run(tmp_path, "mine").name == "mine-3"


def test_a_run_whose_own_name_ends_in_a_number_is_no_repeat_of_another(tmp_path: Path) -> None:
    first, other = demo(tmp_path, name="mine"), demo(tmp_path, name="mine-2")
    other = replace(other, optimization=replace(other.optimization, epochs=3))
    create(tmp_path, first, "float32")
    create(tmp_path, other, "float32")
    for config, name in ((first, "mine"), (other, "mine-2")):
        found = find_run(config)
        assert found is not None
        assert found[1].name == name
    assert create(tmp_path, first, "float32").name == "mine-3", "the next number that is free"
    assert newest_run(tmp_path, "mine").name == "mine-3"
    assert newest_run(tmp_path, "mine-2").name == "mine-2"
    (tmp_path / "runs" / "mine-2" / "run.json").write_text("{")
    assert next_run(tmp_path, "mine").name == "mine-4", "what cannot be read is in nobody's way"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_config_finds_its_run_and_the_precision_it_was_created_with(tmp_path: Path, precision: str) -> None:
    config = demo(tmp_path)
    assert find_run(config) is None
    folder = create(tmp_path, config, precision)
    found = find_run(config)
    assert found is not None
    assert found[1].path == folder.path
    assert found[0].compute.attack_precision == precision
    assert found[0] == folder.config()


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    create(tmp_path, demo(tmp_path), "float32")
    assert find_run(demo(tmp_path, seed=1)) is None


def test_what_a_killed_process_was_writing_is_removed_when_the_run_is_in_use_again(tmp_path: Path) -> None:
    for name in (".history.json.4711", ".model.safetensors.12", "history.json", ".hidden"):
        (tmp_path / name).write_text("{}")
    folder = RunFolder(tmp_path)
    folder.acquire()
    folder.release()
    assert sorted(file.name for file in tmp_path.iterdir()) == [".hidden", "history.json", "lock"]


def test_a_held_run_is_refused_to_another_process_until_its_holder_dies(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from distributed_autolora.orchestration.runs.folder import "
        "RunFolder; folder = RunFolder(Path(sys.argv[1])); folder.acquire(); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {holder.pid}"):
            RunFolder(tmp_path).acquire()
        holder.kill()
    RunFolder(tmp_path).acquire()


def snapshot_of(run: Path) -> Path:
    (run / "train").mkdir()
    return run / "train" / "checkpoint_manager_snapshot.json"


@pytest.mark.parametrize(
    ("newer", "is_copied", "restored"), [('{"epo', True, '{"epoch": 1}'), ('{"epoch": 2}', False, '{"epoch": 2}')]
)
def test_a_half_written_snapshot_is_replaced_by_the_last_whole_one_and_a_whole_one_is_left_alone(
    newer: str, is_copied: bool, restored: str, tmp_path: Path
) -> None:
    snapshot = snapshot_of(tmp_path)
    snapshot.write_text('{"epoch": 1}')
    copy_index(tmp_path)
    snapshot.write_text(newer)
    if is_copied:
        copy_index(tmp_path)
    restore_index(tmp_path)
    assert json.loads(snapshot.read_text()) == json.loads(restored)


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
