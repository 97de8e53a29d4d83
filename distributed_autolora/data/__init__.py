"""Labelled images: tasks, Parquet files, splits, order and augmentation, all keyed by stable row positions."""

from distributed_autolora.data.keyed import STREAMS, keyed_permutation, keyed_uniform

__all__ = ["STREAMS", "keyed_permutation", "keyed_uniform"]
