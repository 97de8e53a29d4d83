"""The check of quality trains each model once, judges it in float32, and follows its own rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import ttest_rel

from benchmarks.quality import Paired, compare, show, verdict
from benchmarks.quality_runs import FAST, FLOAT32, PATHS, Task, expected_seconds, tasks_of, train_and_judge, work_off
from distributed_autolora.core.attacks import pgd
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.models.portable import read_model
from distributed_autolora.training.task_data import TaskData
from tests.training.tasks import small_config, write_task


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Task], list[dict[str, Any]]]:
    """Both paths of one seed, trained by two processes for an epoch."""
    folder = tmp_path_factory.mktemp("quality")
    data = write_task(folder / "task", 150)
    tasks = tasks_of(small_config(data, epochs=1), (7,), folder / "kept")
    return tasks, work_off(tasks, jobs=2)


def found(path: str, seed: int, natural: int, robust: int) -> dict[str, Any]:
    """Returns what a run of 100 test images would have found."""
    correct = {"natural_accuracy": natural, "robust_accuracy/pgd100": robust}
    return {"path": path, "seed": seed, "images": 100, "correct": correct, "seconds_of_training": 60.0}


def test_both_paths_are_trained_in_their_own_formats(finished: tuple[list[Task], list[dict[str, Any]]]) -> None:
    tasks, results = finished
    assert [(one["path"], one["seed"], one["epochs"]) for one in results] == [(FAST, 7, 1), (FLOAT32, 7, 1)]
    for one in results:
        formats = PATHS[one["path"]]
        assert (one["attack_precision"], one["train_precision"]) == (formats.attack_precision, formats.train_precision)
    assert tasks[0].place != tasks[1].place
    assert expected_seconds(tasks) > 0


def test_the_judgement_is_that_of_a_float32_attack_on_the_kept_model(
    finished: tuple[list[Task], list[dict[str, Any]]],
) -> None:
    tasks, results = finished
    task, config = tasks[0], tasks[0].config
    file = task.place / "model.safetensors"
    model = read_model(file).build()
    data = TaskData(config, task.inputs.data_folder, torch.device("cpu"))
    x, y = data.test_batch(torch.arange(data.num_test))
    threat_model, step_size = ThreatModel(epsilon=config.threat_model.epsilon), config.eval_attack.step_size
    x_adv = pgd(model, x, y, threat_model=threat_model, num_steps=10, step_size=step_size, random_start=False)
    natural, robust = (model(images).argmax(1) == y for images in (x, x_adv))
    assert results[0]["correct"]["natural_accuracy"] == int(natural.sum())
    assert results[0]["correct"]["robust_accuracy/pgd10"] == int((natural & robust).sum())


def test_what_is_finished_is_not_trained_again(finished: tuple[list[Task], list[dict[str, Any]]]) -> None:
    tasks, results = finished
    files = sorted(path for task in tasks for path in task.place.iterdir())
    before = [path.stat().st_mtime_ns for path in files]
    assert work_off(tasks, jobs=2) == results
    assert train_and_judge(tasks[0]) == results[0]
    assert [path.stat().st_mtime_ns for path in files] == before
    assert [path.name for path in files] == ["model.safetensors", "result.json"] * 2


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    pair = Paired((0.90, 0.93, 0.91), (0.92, 0.92, 0.905))
    expected = ttest_rel(pair.fast, pair.float32).confidence_interval(0.95)
    assert pair.interval == pytest.approx((expected.low, expected.high))
    assert pair.is_noise
    assert not Paired((0.90, 0.91, 0.92), (0.95, 0.961, 0.97)).is_noise
    assert Paired((0.9,), (0.8,)).interval is None


def test_the_verdict_names_what_differs_and_counts_errors(capsys: pytest.CaptureFixture[str]) -> None:
    equal = [found(path, seed, 90 + seed, 70) for path in PATHS for seed in range(3)]
    assert compare(equal)["verdict"].startswith("Within seed noise")
    worse = [found(path, seed, 90, 70 + seed - 20 * (path == FAST)) for path in PATHS for seed in range(3)]
    result = compare(worse)
    assert result["verdict"].startswith("NOT within seed noise: robust_accuracy/pgd100; pgd100 finds 147 errors")
    show(result)
    assert result["verdict"] in capsys.readouterr().out
    assert verdict({"natural_accuracy": Paired((0.9,), (0.9,))}, equal).startswith("Undecided")
