"""The check of a task as text."""

from distributed_autolora.data.dataset_check import Report
from distributed_autolora.data.decoding import CONVERSIONS
from distributed_autolora.data.split_facts import SplitFacts


def report_text(report: Report) -> str:
    """Returns the facts, warnings and refusals, with every image that cannot be decoded."""
    train = report.train
    lines = [
        f"task: {train.texts.get('task', 'not named')}, protocol {report.protocol}, {len(train.class_names)} classes"
    ]
    for facts in report.splits:
        lines += _split_lines(facts)
    lines += [f"warning: {warning}" for warning in report.warnings]
    lines += [f"refused: {refusal}" for refusal in report.refusals]
    failures = [failure for facts in report.splits for failure in facts.failures]
    lines += [f"cannot be decoded: {failure}" for failure in failures]
    if not report.refusals and not failures:
        lines.append("Nothing speaks against training on it.")
    return "\n".join(lines)


def _split_lines(facts: SplitFacts) -> list[str]:
    counts = sorted(facts.class_counts())
    widths, heights = sorted(size[0] for size in facts.sizes), sorted(size[1] for size in facts.sizes)
    lines = [
        f"{facts.split}: {len(facts.labels):,} images, {facts.image_bytes:,} bytes, {counts[0]} to {counts[-1]} a class"
    ]
    if widths:
        lines.append(f"  sizes: {widths[0]} to {widths[-1]} pixels wide, {heights[0]} to {heights[-1]} high")
    lines += [f"  {kind}: {count:,} ({CONVERSIONS[kind]})" for kind, count in facts.kinds.most_common()]
    return lines
