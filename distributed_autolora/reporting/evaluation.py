"""An evaluation as text, at most 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from distributed_autolora.core.metrics import AccuracyCount
from distributed_autolora.reporting.format import duration, pixel_fraction
from distributed_autolora.reporting.statistics import wilson_interval

WIDTH = 80
_LABEL_WIDTH = 50
_PREFIX = "robust_accuracy/"


def chunk_line(
    number: int, in_all: int, index: int, counts: Mapping[str, AccuracyCount], seconds: float, seconds_left: float
) -> str:
    """Returns one finished chunk in one line.

    Args:
        number: chunks that are finished, this one included.
        in_all: chunks of the evaluation.
        index: which chunk it was.
        counts: its natural accuracy and that under each attack.
        seconds: what it took.
        seconds_left: expected time to the last chunk.
    """
    shares = [
        f"{name.removeprefix(_PREFIX).removesuffix('_accuracy')} {100 * count.accuracy:.1f} %"
        for name, count in counts.items()
    ]
    head = f"{number}/{in_all} (chunk {index})  "
    tail = f"  {duration(seconds)}, {duration(seconds_left)} left"
    return f"{head}{textwrap.shorten('  '.join(shares), WIDTH - len(head) - len(tail), placeholder='...')}{tail}"


def evaluation_table(result: Mapping[str, Any]) -> str:
    """Returns accuracies with their intervals, what broke the images, and the sanity checks.

    Args:
        result: of `evaluation.json`.
    """
    lines = [*_heading(result), "", f"{'':{_LABEL_WIDTH}}  accuracy  95 % interval"]
    for name, count in result["accuracies"].items():
        label = "natural" if name == "natural_accuracy" else result["labels"].get(name, name)
        low, high = wilson_interval(count["correct"], count["total"])
        wrapped = textwrap.wrap(label, _LABEL_WIDTH)
        share = 100 * count["correct"] / count["total"]
        lines += wrapped[:-1]
        lines.append(f"{wrapped[-1]:{_LABEL_WIDTH}}  {share:6.1f} %  [{100 * low:.1f}, {100 * high:.1f}]")
    lines += _broken(result)
    if result.get("curve"):
        lines += ["", *_curve(result["curve"])]
    if result["sanity"]:
        lines += ["", *sanity_lines(result["sanity"])]
    return "\n".join(lines)


def sanity_lines(checks: list[dict[str, Any]]) -> list[str]:
    """Returns PASS, WARN or FAIL of each check, with what it found.

    Args:
        checks: of `evaluation.json`.
    """
    lines = []
    for check in checks:
        text = f"{check['status']}  {check['name']}: {check['detail']}"
        lines += textwrap.wrap(text, WIDTH, subsequent_indent=" " * 6)
    return lines


def _heading(result: Mapping[str, Any]) -> list[str]:
    images, available = result["test_images"], result["test_images_available"]
    which = f"{images:,} test images" if images == available else f"a subset of {images:,} of {available:,} test images"
    task = f" of {result['task']}" if result["task"] else ""
    text = f"{result['model']} on {which}{task}; perturbations of at most "
    return textwrap.wrap(f"{text}{pixel_fraction(result['threat_model']['epsilon'])} a pixel (L-infinity)", WIDTH)


def _broken(result: Mapping[str, Any]) -> list[str]:
    broken = [f"{count} by {name}" for name, count in result["broken_by"].items() if name != "natural"]
    if not broken:
        return []
    return textwrap.wrap(f"Rightly classified images were first broken: {', '.join(broken)}.", WIDTH)


def _curve(curve: Mapping[str, Any]) -> list[str]:
    points = [f"{point['epsilon']:.4g}: {100 * point['correct'] / point['total']:.1f} %" for point in curve["points"]]
    text = f"PGD-20 by epsilon: {', '.join(points)}; mean {100 * curve['expected_robustness']:.1f} %"
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")
