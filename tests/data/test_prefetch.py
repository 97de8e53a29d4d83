import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from distributed_autolora.data.prefetch import prefetched
from distributed_autolora.training.task_data import TaskData
from tests.data.pictures import encode, picture, rows_of, write
from tests.training.tasks import small_config

Augmentation = Literal["none", "crop_flip", "resized_crop_flip"]


def test_results_come_in_order_and_at_most_two_ahead() -> None:
    loaded: list[int] = []

    def load(item: int) -> int:
        loaded.append(item)
        return item * item

    results = prefetched(load, range(10))
    assert next(results) == 0
    time.sleep(0.2)
    assert loaded == [0, 1, 2]
    assert list(results) == [item * item for item in range(1, 10)]
    assert list(prefetched(load, [])) == []


def test_an_error_comes_where_its_result_would_have_and_ends_the_thread() -> None:
    results = prefetched(lambda item: 1 // item, [2, 1, 0, 1])
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())
    with pytest.raises(ValueError, match="at least 1"):
        prefetched(str, [1], ahead=0)


def test_leaving_early_ends_the_thread() -> None:
    results = prefetched(str, range(100))
    assert next(results) == "0"
    results.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())


@pytest.mark.parametrize("augmentation", ["crop_flip", "resized_crop_flip", "none"])
def test_prefetched_batches_are_the_training_batches(augmentation: Augmentation, tmp_path: Path) -> None:
    folder = tmp_path / "task"
    for split, start in (("train", 0), ("test", 200)):
        write(folder, f"{split}.parquet", rows_of([encode(picture(start + n, (40, 36))) for n in range(130)]))
    config = small_config(str(folder))
    size = 28 if augmentation == "resized_crop_flip" else None
    config = replace(
        config,
        data=replace(config.data, augmentation=augmentation, image_size=size),
        model=replace(config.model, mean=(0.5,) * 3, std=(0.25,) * 3),
        scaling=replace(config.scaling, cache=str(tmp_path / "cache")),
    )
    data = TaskData(config, str(folder), torch.device("cpu"))
    batches = [torch.tensor([5, 3]), torch.arange(40), torch.arange(0), torch.tensor([129])]
    pairs = list(data.prefetch(batches, 2, "augmentation"))
    assert len(pairs) == 4
    for rows, (x, y) in zip(batches, pairs, strict=True):
        expected = data.training_batch(rows, 2, "augmentation")
        assert torch.equal(x, expected[0])
        assert torch.equal(y, expected[1])
    assert (tmp_path / "cache").exists() == (size is not None)
