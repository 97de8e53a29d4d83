"""Worker-hours come from a speed that was measured, and say where; a dry run starts nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from distributed_autolora.hardware import available_cpus
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.orchestration.studies.estimate import dry_run, dry_run_text, measured_speed
from distributed_autolora.orchestration.studies.plan import plan_final
from distributed_autolora.orchestration.studies.request import CompareFlags, study_request
from distributed_autolora.studies import EMBEDDED_TASK, Arm, Study, base_config, with_settings
from tests.reporting import runs

ROOT = Path(__file__).parents[3]
BASE = base_config(EMBEDDED_TASK)


def finished_run(home: Path, name: str, seconds: float, *, steps: int = 10, node: str | None = None) -> None:
    """Writes a finished run of 2 epochs of 300 images on 2 workers."""
    folder = RunFolder(home / "runs" / name)
    folder.acquire()
    folder.create(replace(BASE, train_attack=replace(BASE.train_attack, num_steps=steps)))
    history = [replace(record, epoch_seconds=seconds, num_workers=2) for record in runs.history(2)]
    folder.write_history(history)
    folder.write_result(replace(runs.result(history), train_images=300))
    folder.release()
    if node is not None:
        (folder.path / "lock").write_text(f"process 1 on {node}")


def test_the_newest_run_alike_on_this_machine_says_how_fast_a_worker_is(tmp_path: Path) -> None:
    finished_run(tmp_path, "older", 1.0)
    finished_run(tmp_path, "mine", 3.0)
    finished_run(tmp_path, "other-attack", 0.1, steps=7)
    finished_run(tmp_path, "other-machine", 0.1, node="elsewhere")
    for age, name in enumerate(("other-machine", "other-attack", "mine", "older")):
        os.utime(tmp_path / "runs" / name / "result.json", (1e9 - age, 1e9 - age))
    speed = measured_speed(BASE, tmp_path)
    assert speed is not None
    assert speed.images_per_s == 300 / (3.0 * 2)
    assert '"mine"' in speed.origin
    assert speed.worker_hours(BASE, 1000) == BASE.optimization.epochs * 1000 / 50 / 3600


@pytest.mark.parametrize(("seconds", "shown"), [(400.0, "0.375"), (0.1, "1500")])
def test_slow_and_fast_speeds_are_shown_in_digits(tmp_path: Path, seconds: float, shown: str) -> None:
    finished_run(tmp_path, "mine", seconds)
    text = dry_run(study_request(CompareFlags(output=str(tmp_path)), ""))
    assert f'{shown} training images a second and worker: run "mine" on this machine.' in text.splitlines()


def test_without_a_run_the_shipped_measurement_counts_for_its_network_alone(tmp_path: Path) -> None:
    shipped = measured_speed(BASE, tmp_path)
    assert shipped is not None
    assert "not on this machine" in shipped.origin
    assert measured_speed(base_config("cub", weights="w"), tmp_path) is None


def test_a_dry_run_names_every_run_with_its_hours_and_where_they_come_from(tmp_path: Path) -> None:
    finished_run(tmp_path, "mine", 3.0)
    text = dry_run(study_request(CompareFlags(output=str(tmp_path), seeds=2), ""))
    lines = text.splitlines()
    runs = [line for line in lines if line.startswith("  ")]
    assert [sum(line.strip().startswith(phase) for line in runs) for phase in ("search", "final")] == [12, 6]
    assert all("0.07 worker-hours" in line for line in runs)
    assert "In all 1.2 worker-hours." in lines
    assert '50 training images a second and worker: run "mine" on this machine.' in lines
    assert not (tmp_path / "studies").exists()


def test_arms_of_other_sizes_take_their_own_time_and_what_is_done_takes_none(tmp_path: Path) -> None:
    finished_run(tmp_path, "mine", 3.0)  # 50 images a second
    sizes = {"small": (500, 125), "large": (2500, 125)}
    arms = [
        Arm(
            name=name,
            config=with_settings(
                BASE,
                {"data.train_images": images, "data.val_fraction": held_out / images, "data.val_images_min": 0},
            ),
        )
        for name, (images, held_out) in sizes.items()
    ]
    study = Study(name="sizes", title="Sizes", paper_tables=(), arms=tuple(arms), reference="small")
    runs = plan_final(study, (0, 1), {})
    hours = [BASE.optimization.epochs * trained / 50 / 3600 for trained in (375, 2375)]
    lines = dry_run_text(study, runs, tmp_path).splitlines()
    assert [line.split()[-2] for line in lines if line.startswith("  ")] == [f"{h:.2f}" for h in hours for _ in "01"]
    assert f"In all {2 * sum(hours):.1f} worker-hours." in lines
    at_a_time = available_cpus() // (BASE.scaling.num_workers * BASE.scaling.cpus_per_worker) or 1
    runs[2].status = runs[3].status = "finished"
    left = f"about {120 * hours[0] / BASE.scaling.num_workers / at_a_time:.0f} minutes on this machine"
    assert left in dry_run_text(study, runs, tmp_path)


def test_the_judgement_is_said_to_be_no_part_of_the_estimate(tmp_path: Path) -> None:
    flags = CompareFlags(attacks="apgd", attack_images=250, output=str(tmp_path))
    assert dry_run(study_request(flags, "")).endswith("The judgement by apgd is not in it.")


def test_what_was_not_measured_is_not_guessed(tmp_path: Path) -> None:
    text = dry_run(study_request(CompareFlags(study="sharpening", task="cub", output=str(tmp_path)), ""))
    assert text.count("not known") == 22  # 21 runs and their sum
    assert "Images per second of resnet18: not yet measured." in text


def test_the_program_shows_a_dry_run_without_ray_and_mlflow_and_refuses_in_one_line(tmp_path: Path) -> None:
    probe = "import runpy, sys; sys.argv[1:] = {arguments}; runpy.run_path('jobs/compare.py', run_name='__main__')"
    probe = (
        f"import atexit, sys; atexit.register(lambda: print('ray' in sys.modules, 'mlflow' in sys.modules)); {probe}"
    )

    def program(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", probe.format(arguments=list(arguments))]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    shown = program("--dry-run", "--output", str(tmp_path))
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[-1] == "False False"
    refused = program("--studdy", "x")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "Perhaps you meant: --study" in refused.stderr
