"""Accuracies, settings and errors of a study as short text."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from distributed_autolora.reporting.format import attack_label, compact
from distributed_autolora.reporting.markdown import per_cent
from distributed_autolora.reporting.statistics import standard_deviation
from distributed_autolora.reporting.study.loading import APGD, AUTOATTACK, NATURAL, ROBUST, StudyRun


def number(setting: Any) -> str:
    """Returns the value of a setting, short."""
    return compact(setting) if isinstance(setting, float) else str(setting)


def mean_and_each(fractions: Sequence[float]) -> str:
    """Returns "3.2 (2.8, 3.6)" in hundredths, a single one alone."""
    each = f" ({', '.join(map(per_cent, fractions))})" if len(fractions) > 1 else ""
    return per_cent(statistics.fmean(fractions)) + each


def mean_and_spread(values: Sequence[float]) -> str:
    """Returns "83.2 ± 0.4 (83.6, 82.8)", a single one alone."""
    if len(values) == 1:
        return per_cent(values[0])
    spread = per_cent(standard_deviation(values) or 0.0)
    return f"{per_cent(statistics.fmean(values))} ± {spread} ({', '.join(map(per_cent, values))})"


def error_text(run: StudyRun) -> str:
    """Returns why a run failed, in at most 160 characters of one line."""
    text = " ".join((run.error or "no error was recorded").split()).replace("`", "'")
    return text if len(text) <= 160 else f"{text[:157]}..."


def metric_label(metric: str) -> str:
    """Returns an accuracy's name in text: "natural", "PGD-10", "AutoAttack"."""
    names = {NATURAL: "natural", AUTOATTACK: "AutoAttack", APGD: "APGD-CE + APGD-T"}
    return names.get(metric) or attack_label(metric.removeprefix(ROBUST))
