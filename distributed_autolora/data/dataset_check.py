"""Checks every image of a task before training."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import pyarrow.compute as pc
import torch

from distributed_autolora.console import command
from distributed_autolora.data.class_names import look_alikes, too_few
from distributed_autolora.data.decoding import refuse_undecodable
from distributed_autolora.data.parquet.checks import check_same_names
from distributed_autolora.data.parquet.reader import protocol_of
from distributed_autolora.data.split_facts import SplitFacts, look
from distributed_autolora.data.splits import Split
from distributed_autolora.errors import UserError, some
from distributed_autolora.hardware import available_cpus

_IMBALANCE = 10
RELEASED = (
    "these are the released splits (protocol released), faults included, for comparison with published numbers: "
    "name the protocol wherever a number from them is shown."
)
"""Warning about every task with the released splits."""

_LOSSY = ("CMYK", "transparent", "16 bits")


@dataclass(frozen=True)
class Report:
    """Result of the check of a task: facts, warnings, and the reasons that forbid its use."""

    train: SplitFacts
    test: SplitFacts | None
    """None: not checked."""
    split: Split | None
    """Training and validation rows, if they were requested and can be chosen."""
    refusals: tuple[str, ...]
    """One line each; with any, the task cannot be used."""
    warnings: tuple[str, ...]

    @property
    def splits(self) -> tuple[SplitFacts, ...]:
        """The checked splits."""
        return (self.train,) if self.test is None else (self.train, self.test)

    @property
    def protocol(self) -> str:
        """ "clean" or "released"."""
        return protocol_of(self.train.texts)

    def usable(self) -> Self:
        """Returns this report of a task that can be used.

        Raises:
            UserError: with all images that cannot be decoded, otherwise with the first reason.
        """
        refuse_undecodable([failure for facts in self.splits for failure in facts.failures])
        if self.refusals:
            raise UserError(self.refusals[0])
        return self


def examine_task(
    folder: str,
    *,
    with_test: bool = True,
    one_size: bool = False,
    choose: Callable[[SplitFacts], Split] | None = None,
) -> Report:
    """Decodes every image of a task, one row group in memory at a time, and compares the splits.

    `choose` chooses the training and validation rows; None: that split is not checked.

    Raises:
        UserError: for files that cannot be read, labels out of range, and splits with different classes.
    """
    with ThreadPoolExecutor(available_cpus()) as workers:
        splits = [look(folder, split, workers) for split in ("train", "test")[: 1 + with_test]]
    train, test = splits[0], splits[1] if with_test else None
    refusals = _other_sizes(splits) if one_size else []
    warnings = [warning for facts in splits for warning in _split_warnings(facts)]
    known = protocol_of(train.texts) == "released"
    if known:
        warnings.append(RELEASED)
    leaks = [_repeated_ids(facts) for facts in splits]
    leaks += [too_few(train.class_names, dict(enumerate(train.class_counts())), train.where)]
    if test is not None:
        check_same_names(train.class_names, test.class_names, train.where, test.where)
        leaks.append(_test_copies(train, test))
    split = choose(train) if choose and not train.failures else None
    if split is not None:
        leaks += [_validation_copies(train, split), _untrained(train, split)]
    (warnings if known else refusals).extend(filter(None, leaks))
    return Report(train, test, split, tuple(refusals), tuple(warnings))


def _split_warnings(facts: SplitFacts) -> list[str]:
    counts = facts.class_counts()
    alike = [f"{one!a} and {other!a}" for one, other in look_alikes(facts.class_names)]
    warnings = [f"{facts.where} has class names that look alike: {some(alike)}."] if alike else []
    missing = [name for name, count in zip(facts.class_names, counts, strict=True) if not count]
    if missing:
        warnings.append(f"{facts.where} has no image of {len(missing)} classes: {some(missing, between='; ')}.")
    smallest, largest = min(count for count in counts if count), max(counts)
    if largest > _IMBALANCE * smallest:
        warnings.append(
            f"{facts.where} is not balanced: {smallest} to {largest} images a class. Accuracies are over images."
        )
    lossy = [f"{facts.kinds[kind]} {kind}" for kind in _LOSSY if facts.kinds[kind]]
    if lossy:
        warnings.append(f"{facts.where} has images that lose something when they are decoded: {', '.join(lossy)}.")
    return warnings + _repeated(facts)


def _repeated(facts: SplitFacts) -> list[str]:
    first: dict[int, int] = {}
    copies, contradictions = 0, []
    ascending = facts.fingerprints.sort().values
    several = torch.isin(facts.fingerprints, ascending[1:][ascending[1:] == ascending[:-1]]).nonzero().flatten()
    for row in several.tolist():
        before = first.setdefault(int(facts.fingerprints[row]), row)
        copies += before != row
        if facts.labels[row] != facts.labels[before]:
            contradictions.append(f"{facts.place(row)} and {facts.place(before)}")
    warnings = [f"{facts.where} holds {copies} copies of other images in it, byte for byte."] if copies else []
    if contradictions:
        warnings.append(
            f"the same image has two labels in {len(contradictions)} places: {some(contradictions, between='; ')}."
        )
    return warnings


def _test_copies(train: SplitFacts, test: SplitFacts) -> str:
    rows = torch.isin(test.fingerprints, train.fingerprints).nonzero().flatten().tolist()
    if not rows:
        return ""
    at = {key: row for row, key in enumerate(train.fingerprints.tolist())}
    copies = [f"{test.place(row)} is {train.place(at[int(test.fingerprints[row])])}" for row in rows]
    return (
        f"{len(rows)} of {len(test.labels)} test images are also training images, byte for byte: "
        f"{some(copies, between='; ')}. {command('data prepare')} leaves such images out of train."
    )


def _untrained(train: SplitFacts, split: Split) -> str:
    trained = set(train.labels[split.train].tolist())
    names = [name for label, name in enumerate(train.class_names) if label not in trained]
    return f"the chosen training images of {train.where} have none of {some(names)}: give more." if names else ""


def _repeated_ids(facts: SplitFacts) -> str:
    ids = []
    if pc.count_distinct(facts.row_ids).as_py() < len(facts.row_ids):
        ids = [row_id for row_id, count in Counter(facts.row_ids.to_pylist()).items() if count > 1]
    return f"{facts.where} has row ids more than once: {some(ids)}. Give every image one of its own." if ids else ""


def _validation_copies(train: SplitFacts, split: Split) -> str:
    both = torch.isin(train.fingerprints[split.val], train.fingerprints[split.train])
    rows = split.val[both].tolist()
    if not rows:
        return ""
    places = some([train.place(row) for row in rows], between="; ")
    return f"{len(rows)} validation images are also training images, byte for byte: {places}. Remove the copies."


def _other_sizes(splits: list[SplitFacts]) -> list[str]:
    """Returns a line for each split whose images are not all of one size, or of another than the first split's."""
    found = [facts.odd_size for facts in splits if facts.odd_size]
    first = next(iter(splits[0].sizes), None)
    for facts in splits[1:]:
        size = next(iter(facts.sizes), first)
        if not found and first is not None and size is not None and size != first:
            found.append(
                f"{facts.where} has images of {size[0]} x {size[1]} pixels, but {splits[0].where} of {first[0]} x "
                f"{first[1]}: give --data.image-size (for instance 224) to bring all images to one size."
            )
    return found
