"""Reading of flat metrics by name, as `EpochRecord.metrics` returns them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def value(metrics: Mapping[str, Any], key: str) -> float | None:
    """Returns a metric as a number, or None where it is absent or not measured."""
    found = metrics.get(key)
    return None if found is None else float(found)


def series(history: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """Returns a metric by epoch, NaN where it is absent."""
    return [math.nan if (found := value(metrics, key)) is None else found for metrics in history]
