"""An evaluation as text, at most 80 columns wide."""

import textwrap
from collections.abc import Mapping

from distributed_autolora.records import AccuracyCount, Curve, Evaluation, SanityCheck
from distributed_autolora.reporting.corruptions import corruption_lines
from distributed_autolora.reporting.format import duration, threat_text
from distributed_autolora.reporting.statistics import wilson_interval

WIDTH = 80
_LABEL_WIDTH = 50


def chunk_line(
    number: int, in_all: int, index: int, counts: Mapping[str, AccuracyCount], seconds: float, seconds_left: float
) -> str:
    """Returns a finished chunk in one line.

    Args:
        number: chunks that are finished, this one included, of `in_all`.
    """
    shares = [
        f"{name.removeprefix('robust_accuracy/').removesuffix('_accuracy')} {100 * count.accuracy:.1f} %"
        for name, count in counts.items()
    ]
    head = f"{number}/{in_all} (chunk {index})  "
    tail = f"  {duration(seconds)}, {duration(seconds_left)} left"
    return f"{head}{textwrap.shorten('  '.join(shares), WIDTH - len(head) - len(tail), placeholder='...')}{tail}"


def evaluation_table(evaluation: Evaluation) -> str:
    """Returns accuracies with their intervals, what broke the images, and the sanity checks."""
    lines = [*_heading(evaluation), "", f"{'':{_LABEL_WIDTH}}  accuracy  95 % interval"]
    rows = [("natural", evaluation.natural), *((attack.label, attack.robust) for attack in evaluation.results())]
    for label, count in rows:
        low, high = wilson_interval(count.correct, count.total)
        *first, last = textwrap.wrap(label, _LABEL_WIDTH)
        lines += [*first, f"{last:{_LABEL_WIDTH}}  {100 * count.accuracy:6.1f} %  [{100 * low:.1f}, {100 * high:.1f}]"]
    if broken := broken_text(evaluation):
        lines += textwrap.wrap(broken, WIDTH)
    if evaluation.corruptions:
        lines += ["", *corruption_lines(evaluation)]
    if evaluation.curve is not None:
        lines += ["", *_curve(evaluation.curve)]
    if evaluation.sanity:
        lines += ["", *_sanity(evaluation.sanity)]
    return "\n".join(lines)


def broken_text(evaluation: Evaluation) -> str:
    """Returns which attacks broke the correctly classified images first; empty where none did."""
    broken = [f"{count} by {name}" for name, count in evaluation.broken_by.items() if name != "natural"]
    return f"Correctly classified images were first broken: {', '.join(broken)}." if broken else ""


def _sanity(checks: tuple[SanityCheck, ...]) -> list[str]:
    texts = [f"{check.status}  {check.name}: {check.detail}" for check in checks]
    return [line for text in texts for line in textwrap.wrap(text, WIDTH, subsequent_indent=" " * 6)]


def _heading(evaluation: Evaluation) -> list[str]:
    images, available = evaluation.test_images, evaluation.test_images_available
    which = f"a subset of {images:,} of {available:,}" if evaluation.is_subset else f"{images:,}"
    task = f" of {evaluation.task}" if evaluation.task else ""
    text = f"{evaluation.model} on {which} test images{task}; perturbations of "
    return textwrap.wrap(f"{text}{threat_text(evaluation.norm, evaluation.epsilon)}", WIDTH)


def _curve(curve: Curve) -> list[str]:
    points = [f"{point.epsilon:.4g}: {100 * point.robust.accuracy:.1f} %" for point in curve.points]
    text = f"PGD-20 by epsilon: {', '.join(points)}; mean {100 * curve.expected_robustness:.1f} %"
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")
