import itertools

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from scipy import stats

from distributed_autolora.data import STREAMS, keyed_permutation, keyed_uniform
from tests.reference import keyed as reference

ROWS = torch.arange(1000)
GOLDEN_UNIFORM = [[9683121, 9028208], [4638913, 13228968]]  # of 2^24
GOLDEN_PERMUTATION = [4, 5, 2, 3, 1, 7, 6, 0]


def test_numbers_are_those_of_exact_integer_arithmetic() -> None:
    rows = torch.tensor([0, 1, 7, 2**31, 2**40])
    for stream in STREAMS:
        for seed, epoch in ((0, 0), (2**31 - 1, 59)):
            expected = [reference.uniform(seed, stream, epoch, row, 6) for row in rows.tolist()]
            drawn = keyed_uniform(seed, stream, epoch, rows, (2, 3)).reshape(5, 6)
            assert torch.equal(drawn, torch.tensor(expected))
    assert keyed_uniform(0, "attack", 0, ROWS[:0], (3, 4)).shape == (0, 3, 4)


def test_numbers_never_change_between_versions() -> None:
    drawn = keyed_uniform(0, "attack", 0, torch.tensor([0, 1]), (2,)) * 2**24
    assert drawn.long().tolist() == GOLDEN_UNIFORM
    assert keyed_permutation(0, "order", 0, 8).tolist() == GOLDEN_PERMUTATION


@pytest.mark.parametrize("stream", STREAMS)
def test_numbers_are_uniform_over_rows_and_within_a_row(stream: str) -> None:
    over_rows = keyed_uniform(1, stream, 2, torch.arange(20_000)).numpy()
    within = keyed_uniform(1, stream, 2, torch.tensor([5]), (20_000,))[0].numpy()
    over_epochs = torch.stack([keyed_uniform(1, stream, epoch, torch.tensor([5]))[0] for epoch in range(1_000)]).numpy()
    for drawn in (over_rows, within, over_epochs):
        assert stats.kstest(drawn, "uniform").pvalue > 1e-3


def test_neighbouring_rows_and_numbers_are_uncorrelated() -> None:
    drawn = keyed_uniform(0, "attack", 0, torch.arange(20_000), (2,))
    pairs = [(drawn[:-1, 0], drawn[1:, 0]), (drawn[:, 0], drawn[:, 1]), (drawn[:-1, 1], drawn[1:, 0])]
    for one, other in pairs:
        assert abs(stats.pearsonr(one.numpy(), other.numpy()).statistic) < 0.03


def test_seed_stream_and_epoch_each_change_the_numbers() -> None:
    keys = [(0, "order", 0), (1, "order", 0), (0, "order", 1), *((0, stream, 0) for stream in STREAMS[1:])]
    drawn = [keyed_uniform(seed, stream, epoch, ROWS) for seed, stream, epoch in keys]
    for one, other in itertools.combinations(drawn, 2):
        assert (one == other).float().mean() < 0.01


def test_numbers_ignore_and_leave_torchs_generator_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = keyed_uniform(0, "attack", 0, ROWS)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(keyed_uniform(0, "attack", 0, ROWS), first)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_numbers() -> None:
    drawn = keyed_uniform(3, "attack", 4, ROWS.cuda(), (3, 8, 8))
    assert drawn.is_cuda
    assert torch.equal(drawn.cpu(), keyed_uniform(3, "attack", 4, ROWS, (3, 8, 8)))


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(st.integers(0, 300), st.integers(0, 2**31 - 1), st.integers(0, 100))
def test_a_permutation_is_the_order_of_the_rows_hashes(count: int, seed: int, epoch: int) -> None:
    drawn = keyed_permutation(seed, "order", epoch, count)
    assert drawn.dtype == torch.int64
    assert drawn.tolist() == reference.permutation(seed, "order", epoch, count)
    assert sorted(drawn.tolist()) == list(range(count))
