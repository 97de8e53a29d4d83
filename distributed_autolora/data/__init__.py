"""Labelled images: tasks, Parquet files, splits, order and augmentation, all keyed by stable row positions."""

from distributed_autolora.core.keyed_random import STREAMS, keyed_permutation, keyed_uniform

__all__ = ["STREAMS", "keyed_permutation", "keyed_uniform"]
