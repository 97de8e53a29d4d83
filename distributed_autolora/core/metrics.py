"""Counting of correct predictions."""

from __future__ import annotations

from torch import Tensor

from distributed_autolora.records import AccuracyCount

__all__ = ["AccuracyCount", "count_correct"]


def count_correct(logits: Tensor, y: Tensor) -> AccuracyCount:
    """Counts the rows of [n, classes] logits whose largest entry is the label in `y` [n]."""
    return AccuracyCount(int((logits.argmax(1) == y).sum()), len(y))
