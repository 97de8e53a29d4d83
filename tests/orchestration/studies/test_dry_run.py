"""A dry run lists every run with the passes that such a run records, and starts nothing."""

from pathlib import Path

import pytest

from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.studies.dry_run import dry_run, passes_by_arm
from distributed_autolora.orchestration.studies.request import CompareFlags, study_request
from distributed_autolora.records import Passes
from distributed_autolora.studies import EMBEDDED_TASK, base_config, study
from distributed_autolora.training.methods.cost import epoch_passes
from tests.programs import program
from tests.training.tasks import write_task


def test_every_arm_has_the_passes_of_its_own_images(tmp_path: Path) -> None:
    built = study("untuned_sizes", base_config(EMBEDDED_TASK))
    passes = passes_by_arm(built)
    for arm in built.arms:
        held_out = round((arm.config.data.train_images or 0) * arm.config.data.val_fraction)
        trained = (arm.config.data.train_images or 0) - held_out
        epochs = range(1, arm.config.optimization.epochs + 1)
        unchecked = sum((epoch_passes(arm.config, trained, held_out, epoch) for epoch in epochs), Passes(0, 0))
        found = passes[arm.id]
        assert found is not None
        checks = found.forward + found.backward - unchecked.forward - unchecked.backward
        assert 0 < checks <= 0.05 * (unchecked.forward + unchecked.backward)


def test_every_run_is_listed_once_with_its_passes_and_their_sum(tmp_path: Path) -> None:
    request = study_request(CompareFlags(output=str(tmp_path), seeds=2), "")
    lines = dry_run(request).splitlines()
    runs = [line for line in lines if line.startswith("  ")]
    assert [sum(line.strip().startswith(phase) for line in runs) for phase in ("search", "final")] == [12, 6]
    forward = [int(line.split(" forward")[0].split()[-1].replace(",", "")) for line in (*runs, lines[-3])]
    assert sum(forward[:-1]) == forward[-1]
    assert lines[-3].startswith("In all")
    assert not (tmp_path / "studies").exists()


def test_passes_of_images_that_are_not_there_are_not_guessed(tmp_path: Path) -> None:
    text = dry_run(study_request(CompareFlags(study="sharpening", task="cub", output=str(tmp_path)), ""))
    assert text.count("passes not known: give --data") == 21 + 2


def test_images_that_were_named_and_cannot_be_used_are_refused(tmp_path: Path) -> None:
    write_task(tmp_path / "task", train=9, test=3)
    for data, said in (("nowhere", "does not exist"), ("task", "data.train_images is 1000, but .* has 9 images")):
        flags = CompareFlags(study="untuned", data=str(tmp_path / data), output=str(tmp_path / "home"))
        with pytest.raises(UserError, match=said):
            dry_run(study_request(flags, ""))


def test_the_program_shows_a_dry_run_without_ray_and_mlflow_and_refuses_in_one_line(tmp_path: Path) -> None:
    probe = (
        "import atexit, runpy, sys; atexit.register(lambda: print('ray' in sys.modules, 'mlflow' in sys.modules)); "
        "runpy.run_path('jobs/compare.py', run_name='__main__')"
    )
    shown = program("-c", probe, "--dry-run", "--output", tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[-1] == "False False"
    refused = program("-c", probe, "--studdy", "x")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "--study" in refused.stderr
