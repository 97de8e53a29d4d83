"""The quality check trains each model once, evaluates it in float32, and follows its own rule."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import ttest_rel

from benchmarks.quality import FAST, PATHS, compare, confidence_interval, train_and_evaluate
from distributed_autolora.core.attacks import pgd
from distributed_autolora.core.threat_model import ThreatModel
from distributed_autolora.training.loop import fit
from distributed_autolora.training.methods.registry import fresh_classifier
from distributed_autolora.training.reporter import NoReports
from distributed_autolora.training.task_data import TaskData
from tests.training.tasks import small_config, write_task


def found(path: str, seed: int, natural: int, robust: int) -> dict[str, Any]:
    correct = {"natural_accuracy": natural, "robust_accuracy/pgd100": robust}
    return {"path": path, "seed": seed, "images": 100, "correct": correct, "seconds_of_training": 60.0}


def test_a_model_is_trained_once_and_evaluated_by_a_float32_attack(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task", 150)
    config = replace(small_config(folder, epochs=1), compute=PATHS[FAST])
    result = train_and_evaluate(config, folder, None, tmp_path)
    assert (result["path"], result["seed"], result["images"]) == (FAST, config.seed, 30)
    data = TaskData(config, folder, torch.device("cpu"))
    model = fresh_classifier(config, data.num_classes, None)
    model.load_state_dict(fit(config, data, None, NoReports()).weights)
    model.eval()
    x, y = data.test_batch(torch.arange(data.num_test))
    threat_model, step_size = ThreatModel(epsilon=config.threat_model.epsilon), config.eval_attack.step_size
    x_adv = pgd(model, x, y, threat_model=threat_model, num_steps=10, step_size=step_size, random_start=False)
    natural, robust = (model(images).argmax(1) == y for images in (x, x_adv))
    assert result["correct"]["natural_accuracy"] == int(natural.sum())
    assert result["correct"]["robust_accuracy/pgd10"] == int((natural & robust).sum())
    (file,) = tmp_path.glob("fast-*.json")
    before = file.stat().st_mtime_ns
    assert train_and_evaluate(config, folder, None, tmp_path) == result
    assert file.stat().st_mtime_ns == before


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    fast, float32 = (0.90, 0.93, 0.91), (0.92, 0.92, 0.905)
    expected = ttest_rel(fast, float32).confidence_interval(0.95)
    differences = [a - b for a, b in zip(fast, float32, strict=True)]
    assert confidence_interval(differences) == pytest.approx((expected.low, expected.high))
    assert confidence_interval([0.1]) is None


def test_the_verdict_names_what_differs_and_counts_errors() -> None:
    equal = [found(path, seed, 90 + seed, 70) for path in PATHS for seed in range(3)]
    assert compare(equal)["verdict"].startswith("Within seed noise")
    worse = [found(path, seed, 90, 70 + seed - 20 * (path == FAST)) for path in PATHS for seed in range(3)]
    verdict = compare(worse)["verdict"]
    assert verdict.startswith("NOT within seed noise: robust_accuracy/pgd100; pgd100 finds 147 errors")
    assert compare(equal[::3])["verdict"].startswith("Undecided")
