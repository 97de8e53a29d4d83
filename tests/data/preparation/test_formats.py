"""Every kind of source goes through preparation, the check and training."""

from pathlib import Path

import pytest

from distributed_autolora.cli import parse_one_of
from distributed_autolora.config import ExperimentConfig
from distributed_autolora.config.recipes import recipe
from distributed_autolora.data.dataset_check import examine_task
from distributed_autolora.data.dataset_check_report import report_text
from distributed_autolora.data.parquet.reader import read_texts
from distributed_autolora.data.preparation.flags import SOURCES, Check
from distributed_autolora.data.preparation.prepare import prepare
from tests.data.preparation.formats import FORMATS, words, write_source
from tests.training.tasks import changed, fitted


def prepared(task: str, folder: Path) -> tuple[str, str]:
    flags = parse_one_of(SOURCES, "", words(task, write_source(task, folder / "in"), folder / "out"))
    assert not isinstance(flags, Check)
    return prepare(flags).output, flags.recipe


@pytest.mark.parametrize("task", FORMATS)
def test_a_prepared_source_passes_the_check(task: str, tmp_path: Path) -> None:
    folder, name = prepared(task, tmp_path)
    report = examine_task(folder).usable()
    assert report_text(report).endswith("Nothing speaks against training on it.")
    assert report.test is not None
    card = read_texts(folder, "test")["card"]
    assert card["images"] == {"train": len(report.train.labels), "test": len(report.test.labels)}
    assert card["protocol"] == "clean"
    assert recipe(name).recipe == name


def shrunken(config: ExperimentConfig, folder: str) -> ExperimentConfig:
    """Returns the recipe for small images, a small backbone, short attacks and two epochs."""
    small = None if config.data.image_size is None else 32
    return changed(
        config,
        data={"path": folder, "image_size": small},
        model={"backbone": "small_resnet", "input_size": config.model.input_size and 48},
        train_attack={"num_steps": 1},
        eval_attack={"num_steps": 1},
        optimization={"epochs": 2, "global_batch_size": 8},
        compute={"attack_precision": "float32", "train_precision": "float32"},
        scaling={"cache": str(Path(folder).parent / "cache")},
    )


@pytest.mark.parametrize("task", ["cifar10", "dogs", "folder"])
def test_a_prepared_source_trains_two_epochs(task: str, tmp_path: Path) -> None:
    folder, name = prepared(task, tmp_path)
    config = shrunken(recipe(name), folder)
    result = fitted(config)
    images = read_texts(folder, "test")["card"]["images"]
    assert [record.epoch for record in result.history] == [1, 2]
    assert result.summary.train_images + result.summary.val_images == images["train"]
    assert result.summary.test_images == images["test"]
    assert result.summary.image_shape == (3, 32, 32)
