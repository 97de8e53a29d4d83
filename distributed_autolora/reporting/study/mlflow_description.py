"""What a study's MLflow page says."""

from __future__ import annotations

import re

from distributed_autolora.reporting.markdown import NONE, TABLE_NOTE

_ACCURACIES = "Test accuracy in per cent; of several seeds mean ± standard deviation, and each seed's own in brackets:"


_LINK_WITHIN = re.compile(r"\[([^]]+)\]\(#[^)]*\)")


def study_description(report: str, length: int) -> str:
    """Returns a study's report for a page that shows no pictures, has no anchors and takes only so much text.

    Such a page sets the columns of a table without any space between them, so tables become lists. The arms of the
    first, of the accuracies, stand right behind the verdict, whose list has their differences.

    Args:
        report: text of report.md.
        length: most characters; what is too long is cut between two paragraphs.
    """
    end = "The whole report, with its pictures and `results.csv`, is in the folder `report` under Artifacts."
    plain = _LINK_WITHIN.sub(r"\1", report.strip())
    paragraphs = [part for part in plain.split("\n\n") if not part.startswith("![")]
    paragraphs = [_as_list(part) if part.startswith("|") else part for part in _accuracies_first(paragraphs)]
    while paragraphs and len("\n\n".join([*paragraphs, end])) >= length:
        paragraphs.pop()
    if paragraphs and (paragraphs[-1].startswith("#") or paragraphs[-1].endswith(":")):
        paragraphs.pop()
    return "\n\n".join([*paragraphs, end]) + "\n"


def _accuracies_first(paragraphs: list[str]) -> list[str]:
    """Returns a report's paragraphs with the arms of its first table behind the verdict, as a list with a heading."""
    place = next((i for i, part in enumerate(paragraphs) if part.startswith("|")), None)
    if place is None:
        return paragraphs
    header, line, *rows = paragraphs[place].splitlines()
    arms = _as_list("\n".join([header, line, *(row for row in rows if row.startswith("| **"))]))
    behind = paragraphs[place + 1 :]
    rest = [*paragraphs[:place], *(behind[1:] if behind and behind[0].startswith(TABLE_NOTE) else behind)]
    first_section = next((i for i, part in enumerate(rest) if part.startswith("## ")), len(rest))
    lists = [i + 1 for i, part in enumerate(rest[:first_section]) if part.startswith("- ")]
    verdict_end = lists[0] if lists else first_section
    return [*rest[:verdict_end], *([_ACCURACIES, arms] if arms else []), *rest[verdict_end:]]


def _as_list(table: str) -> str:
    """Returns a Markdown table as one item a row: "- AutoLoRa: natural 88.3, PGD-10 79.1"; empty rows are left out."""
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines())
    items = []
    for label, *values in rows:
        known = [f"{name} {value}" for name, value in zip(header[1:], values, strict=True) if value != NONE]
        items += [f"- {label}: {', '.join(known)}"] if known else []
    return "\n".join(items)
