"""A worker's memory is estimated before it trains, and what cannot fit is refused with advice that helps."""

from dataclasses import replace

import pytest

from distributed_autolora.config import ComputeConfig, ExperimentConfig
from distributed_autolora.config.recipes import recipe
from distributed_autolora.errors import UserError
from distributed_autolora.training.memory_estimate import check_fits, estimate

GIB = 2**30
SIZE = (224, 224)
CONFIG = replace(recipe("cub"), compute=ComputeConfig(attack_precision="bfloat16", train_precision="float32"))


def needed(config: ExperimentConfig) -> int:
    return estimate(config, SIZE).on_device(use_gpu=True)


def test_a_gpu_with_too_little_free_memory_is_refused_and_each_advice_lowers_the_need() -> None:
    with pytest.raises(UserError) as refusal:
        check_fits(CONFIG, SIZE, 5 * GIB)
    message = str(refusal.value)
    assert "\n" not in message
    assert "5.0 GiB are free" in message
    assert "--workers 2," in message
    assert needed(replace(CONFIG, scaling=replace(CONFIG.scaling, num_workers=2))) < needed(CONFIG) - GIB
    assert "--evaluation.batch-size-per-worker 64," in message
    assert (
        needed(replace(CONFIG, evaluation=replace(CONFIG.evaluation, batch_size_per_worker=64))) < needed(CONFIG) - GIB
    )
    check_fits(CONFIG, SIZE, needed(CONFIG))


def test_the_largest_share_of_a_batch_that_workers_cannot_split_evenly_counts() -> None:
    three, four = (
        replace(
            CONFIG,
            optimization=replace(CONFIG.optimization, global_batch_size=rows),
            scaling=replace(CONFIG.scaling, num_workers=2),
        )
        for rows in (3, 4)
    )
    assert estimate(three, SIZE) == estimate(four, SIZE)
