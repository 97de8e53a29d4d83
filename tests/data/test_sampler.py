import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from distributed_autolora.data.sampler import global_batches, worker_share

ROWS = torch.arange(3, 3003, 3)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(st.integers(0, 400), st.integers(1, 130), st.integers(0, 100), st.integers(0, 60))
def test_an_epoch_has_every_row_exactly_once(count: int, size: int, seed: int, epoch: int) -> None:
    rows = torch.arange(count) * 5 + 2
    batches = global_batches(rows, size, seed, epoch)
    assert sorted(row for batch in batches for row in batch.tolist()) == rows.tolist()
    assert all(len(batch) == size for batch in batches[:-1])
    assert len(batches) == -(-count // size)


def test_the_order_is_repeatable_and_new_in_every_epoch_and_for_every_seed() -> None:
    order = torch.cat(global_batches(ROWS, 64, 0, 0))
    assert torch.equal(order, torch.cat(global_batches(ROWS, 64, 0, 0)))
    for seed, epoch in ((0, 1), (1, 0), (1, 1)):
        assert (torch.cat(global_batches(ROWS, 64, seed, epoch)) == order).float().mean() < 0.02
    assert (order == ROWS).float().mean() < 0.02


@pytest.mark.parametrize("count", [64, 40, 3, 1])
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_the_workers_shares_are_a_partition_of_the_batch(count: int, num_workers: int) -> None:
    batch = global_batches(ROWS, count, 0, 0)[0]
    shares = [worker_share(batch, worker, num_workers) for worker in range(num_workers)]
    assert sorted(torch.cat(shares).tolist()) == sorted(batch.tolist())
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    interleaved = [shares[place % num_workers][place // num_workers].item() for place in range(count)]
    assert interleaved == batch.tolist()


@pytest.mark.parametrize("count", [64, 7, 3])
@pytest.mark.parametrize(("num_workers", "shards"), [(3, 4), (3, 8), (2, 4), (4, 4), (1, 5)])
def test_with_shards_a_worker_has_whole_ones_in_the_order_of_the_batch(
    count: int, num_workers: int, shards: int
) -> None:
    batch = torch.arange(count)
    shares = [worker_share(batch, worker, num_workers, shards).tolist() for worker in range(num_workers)]
    for worker, share in enumerate(shares):
        owned = [shard for shard in range(shards) if shard % num_workers == worker]
        assert share == sorted(row for shard in owned for row in range(shard, count, shards))
        # What batch norm assumes: row j of these is in the worker's shard j mod (number of its shards).
        assert [row % shards for row in share] == [owned[place % len(owned)] for place in range(len(share))]


def test_impossible_workers_and_batch_sizes_are_refused() -> None:
    for worker in (-1, 2):
        with pytest.raises(ValueError, match="worker must be in"):
            worker_share(ROWS, worker, 2)
    with pytest.raises(ValueError, match="at least 1"):
        global_batches(ROWS, 0, 0, 0)
