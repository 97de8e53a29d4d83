"""Stratified subsets and the training/validation split."""

import hashlib
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from distributed_autolora.core.keyed_random import keyed_order
from distributed_autolora.errors import UserError

# Two draws from the "split" stream that must not repeat each other take different epochs of it.
_SUBSET_DRAW, _HOLDOUT_DRAW = 0, 1
_AT_ONCE = 100_000


@dataclass(frozen=True)
class Split:
    """Which positions of a table are trained on and which are held out."""

    train: Tensor
    """int64 [n], ascending."""
    val: Tensor
    """int64 [m], ascending, disjoint from `train`."""
    digest: str
    """SHA-256 of both index lists."""


def stratified_subset(labels: Tensor, count: int, seed: int) -> Tensor:
    """Returns `count` ascending positions in `labels`, each class's share to within one image.

    Raises:
        UserError: if there are fewer than `count` labels.
    """
    if count > len(labels):
        raise UserError(f"A subset of {count} images was asked for, but there are {len(labels)}: ask for fewer.")
    return _choose(labels, count, seed, _SUBSET_DRAW, keep=0)


def stratified_holdout(labels: Tensor, count: int, seed: int) -> Tensor:
    """Returns `count` ascending positions in `labels`, each class's share to within one image, never all of a class.

    There are fewer only if every class would be left with a single one.
    """
    return _choose(labels, count, seed, _HOLDOUT_DRAW, keep=1)


def validation_size(count: int, fraction: float, minimum: int) -> int:
    """Returns how many of `count` training images are held out for validation.

    With `minimum` 0 training keeps floor((1 - fraction) count) images (section 5 of the paper). Otherwise
    `fraction` of the images or `minimum` are held out, whichever is more, but never more than a quarter.
    """
    # The decimal that was written, not its binary neighbour: 5 % of 12,000 is 600 exactly.
    share = Fraction(str(fraction)) * count
    if minimum == 0:
        return count - int(count - share)
    return min(max(round(share), minimum), count // 4)


def split_train_val(labels: Tensor, *, fraction: float, minimum: int, seed: int) -> Split:
    """Holds out a stratified validation set of `validation_size`; every class keeps at least one training image.

    Raises:
        UserError: if nothing would be left for validation.
    """
    val = stratified_holdout(labels, validation_size(len(labels), fraction, minimum), seed)
    if len(val) == 0:
        raise UserError(
            f"{len(labels)} training images leave none to validate on: give at least 4, two or more of a class, "
            "or a larger --data.val-fraction."
        )
    is_train = torch.ones(len(labels), dtype=torch.bool)
    is_train[val] = False
    train = is_train.nonzero().flatten()
    return Split(train=train, val=val, digest=split_digest(train, val))


def keep_copies_together(split: Split, fingerprints: Tensor) -> Split:
    """Moves validation images that are also training images, with equal fingerprints, to the training images.

    Raises:
        UserError: if nothing would be left for validation.
    """
    is_copy = torch.isin(fingerprints[split.val], fingerprints[split.train])
    if not is_copy.any():
        return split
    train, val = torch.cat([split.train, split.val[is_copy]]).sort().values, split.val[~is_copy]
    if len(val) == 0:
        raise UserError(
            "Every image that was held out for validation is also among the training images: remove the copies."
        )
    return Split(train=train, val=val, digest=split_digest(train, val))


def _choose(labels: Tensor, count: int, seed: int, draw: int, keep: int) -> Tensor:
    """Returns about `count` ascending positions; at least `keep` of every class are not chosen."""
    counts = labels.unique(return_counts=True)[1].tolist()
    positions = labels.argsort(stable=True).split(counts)  # ascending in each class
    quotas = _quotas([len(members) for members in positions], count, keep)
    chosen = [
        members[keyed_order(seed, "split", draw, members)[:quota]]
        for members, quota in zip(positions, quotas, strict=True)
    ]
    return torch.cat([*chosen, torch.empty(0, dtype=torch.int64)]).sort().values


def _quotas(sizes: list[int], count: int, keep: int) -> list[int]:
    """Shares `count` among classes by largest remainder; a class gives at most its size less `keep`."""
    total = sum(sizes)
    limits = [max(size - keep, 0) for size in sizes]
    count = min(count, sum(limits))
    quotas = [min(count * size // total, limit) for size, limit in zip(sizes, limits, strict=True)]
    by_remainder = sorted(range(len(sizes)), key=lambda index: (-(count * sizes[index] % total), index))
    while sum(quotas) < count:
        for index in by_remainder:
            if sum(quotas) < count and quotas[index] < limits[index]:
                quotas[index] += 1
    return quotas


def split_digest(train: Tensor, val: Tensor) -> str:
    """Returns the SHA-256 of two index lists."""
    digest = hashlib.sha256()
    for before, positions in (("", train), (";", val)):
        for number, part in enumerate(positions.split(_AT_ONCE)):  # the text of millions would be large
            digest.update(f"{',' if number else before}{','.join(map(str, part.tolist()))}".encode())
    return digest.hexdigest()
