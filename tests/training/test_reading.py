"""Images are decoded ahead, and a node's cache is filled without a group that would wait."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.training.task_data import TaskData, fill_cache
from tests.training.tasks import small_config, write_task


def resized(folder: str, cache: Path, *, test_split: bool = True) -> ExperimentConfig:
    config = small_config(folder)
    return replace(
        config,
        data=replace(config.data, image_size=16),
        evaluation=replace(config.evaluation, test_split=test_split),
        scaling=replace(config.scaling, cache=str(cache)),
    )


def test_batches_decoded_ahead_are_the_batches_one_by_one(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task", train=80)
    data = TaskData(resized(folder, tmp_path / "cache"), folder, torch.device("cpu"))
    for ahead, one, count in ((data.plain_batches, data.plain_batch, 80), (data.test_batches, data.test_batch, 30)):
        batches = torch.arange(count).flip(0).split(32)
        for expected, (rows, x, y) in zip(batches, ahead(batches), strict=True):
            assert torch.equal(rows, expected)
            assert torch.equal(x, one(expected)[0])
            assert torch.equal(y, one(expected)[1])


@pytest.mark.parametrize("test_split", [True, False])
def test_a_filled_cache_has_the_splits_that_the_run_opens(tmp_path: Path, test_split: bool) -> None:
    folder, cache = write_task(tmp_path / "task", train=80), tmp_path / "cache"
    fill_cache(resized(folder, cache, test_split=test_split), folder)
    expected = ["test", "train"] if test_split else ["train"]
    assert sorted(file.stem.rpartition("-")[2] for file in cache.glob("*.arrow")) == expected


def test_small_images_of_one_size_and_a_cache_that_cannot_be_written_are_left_to_the_run(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task", train=80)
    config = resized(folder, tmp_path / "cache")
    fill_cache(replace(config, data=replace(config.data, image_size=None)), folder)
    assert not (tmp_path / "cache").exists()
    (tmp_path / "file").touch()
    fill_cache(resized(folder, tmp_path / "file" / "cache"), folder)
