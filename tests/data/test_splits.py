import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from distributed_autolora.data.splits import (
    Split,
    split_digest,
    split_train_val,
    stratified_holdout,
    stratified_subset,
    validation_size,
)
from distributed_autolora.errors import UserError

LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=200).map(torch.tensor)
SEEDS = st.integers(0, 2**31 - 1)
SETTINGS = hypothesis.settings(max_examples=60, deadline=None)


@pytest.mark.parametrize(
    ("minimum", "images", "val"),
    [
        *((0, *sizes) for sizes in ((50_000, 2_500), (12_000, 600), (5_994, 300), (3_760, 188), (20, 1), (100, 5))),
        *((250, *sizes) for sizes in ((2_500, 250), (1_250, 250), (1_000, 250), (999, 249), (10_000, 500), (8, 2))),
        *((250, 4, 1), (250, 3, 0)),
    ],
)
def test_a_twentieth_or_the_minimum_is_held_out_but_never_more_than_a_quarter(
    minimum: int, images: int, val: int
) -> None:
    assert validation_size(images, 0.05, minimum) == val


@SETTINGS
@hypothesis.given(LABELS, st.floats(0, 1), SEEDS)
def test_a_subset_is_stratified_to_within_one_image(labels: torch.Tensor, share: float, seed: int) -> None:
    count = int(share * len(labels))
    chosen = stratified_subset(labels, count, seed)
    assert len(chosen) == count
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    for label in labels.unique():
        exact = count * int((labels == label).sum()) / len(labels)
        assert abs(int((labels[chosen] == label).sum()) - exact) < 1


def test_a_subset_of_everything_is_everything_and_a_larger_one_is_refused() -> None:
    assert stratified_subset(torch.tensor([2, 0, 0, 1]), 4, 0).tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match="5 images was asked for, but there are 4"):
        stratified_subset(torch.zeros(4, dtype=torch.int64), 5, 0)


@SETTINGS
@hypothesis.given(LABELS, st.floats(0.01, 0.5), st.sampled_from([0, 10, 250]), SEEDS)
def test_a_split_is_a_partition_that_leaves_every_class_to_train(
    labels: torch.Tensor, fraction: float, minimum: int, seed: int
) -> None:
    sizes = labels.bincount()
    wanted = validation_size(len(labels), fraction, minimum)
    possible = min(wanted, int((sizes - 1).clamp(min=0).sum()))
    if possible == 0:
        with pytest.raises(UserError, match="none to validate"):
            split_train_val(labels, fraction=fraction, minimum=minimum, seed=seed)
        return
    split = split_train_val(labels, fraction=fraction, minimum=minimum, seed=seed)
    assert len(split.val) == possible
    assert sorted([*split.train.tolist(), *split.val.tolist()]) == list(range(len(labels)))
    for positions in (split.train, split.val):
        assert positions.dtype == torch.int64
        assert positions.tolist() == sorted(positions.tolist())
    assert set(labels[split.train].tolist()) == set(labels.tolist())


def test_validation_images_are_spread_over_the_classes_to_within_one() -> None:
    labels = torch.arange(1250) % 7
    split = split_train_val(labels, fraction=0.05, minimum=250, seed=0)
    assert len(split.val) == 250
    for label in range(7):
        exact = 250 * int((labels == label).sum()) / 1250
        assert abs(int((labels[split.val] == label).sum()) - exact) < 1


def test_a_class_with_one_image_is_never_held_out() -> None:
    labels = torch.tensor([0] * 40 + [1])
    for seed in range(20):
        assert 40 in split_train_val(labels, fraction=0.5, minimum=0, seed=seed).train.tolist()
    assert len(stratified_holdout(torch.arange(5), 3, 0)) == 0


def test_a_split_is_repeatable_and_another_seed_gives_another() -> None:
    labels = torch.arange(1000) % 5
    first, again, other = (split_train_val(labels, fraction=0.05, minimum=250, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.val, again.val)
    assert first.digest == again.digest
    assert first.digest != other.digest
    assert len(set(first.val.tolist()) & set(other.val.tolist())) < 125


def test_the_digest_tells_train_from_val() -> None:
    one, two = torch.tensor([1, 2]), torch.tensor([3])
    others = split_digest(two, one), split_digest(torch.tensor([1]), torch.tensor([2, 3]))
    assert len({split_digest(one, two), *others}) == 3
    assert len(Split(one, two, split_digest(one, two)).digest) == 64
