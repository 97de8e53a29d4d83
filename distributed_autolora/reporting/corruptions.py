"""Accuracy under common corruptions by corruption and severity: as text, as Markdown, and as a figure."""

from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from distributed_autolora.files import atomic_write
from distributed_autolora.records import Evaluation
from distributed_autolora.reporting.format import per_cent, table

CORRUPTIONS_FIGURE = "corruptions.png"
_NAME_WIDTH = 20


def corruption_rows(evaluation: Evaluation) -> tuple[list[int], dict[str, list[float]]]:
    """Returns the severities, and for each corruption and "mean" the accuracies by severity and their mean."""
    severities = sorted({result.severity for result in evaluation.corruptions})
    found = {(result.name, result.severity): result.correct.accuracy for result in evaluation.corruptions}
    means = evaluation.corruption_accuracies()
    rows = {name: [*(found[name, severity] for severity in severities), mean] for name, mean in means.items()}
    rows["mean"] = [fmean(column) for column in zip(*rows.values(), strict=True)]
    return severities, rows


def corruption_lines(evaluation: Evaluation) -> list[str]:
    """Returns the table as lines of at most 80 columns."""
    severities, rows = corruption_rows(evaluation)
    header = "".join(f"{name:>7}" for name in [*map(str, severities), "mean"])
    return [
        f"{'accuracy, %':{_NAME_WIDTH}}{header}",
        *(f"{name:{_NAME_WIDTH}}{''.join(f'{per_cent(value):>7}' for value in row)}" for name, row in rows.items()),
    ]


def corruption_section(evaluation: Evaluation) -> list[str]:
    """Returns the section of a model card; none without corruptions."""
    if not evaluation.corruptions:
        return []
    severities, rows = corruption_rows(evaluation)
    header = ["corruption", *(f"severity {severity}" for severity in severities), "mean"]
    text = table(header, [[name, *map(per_cent, row)] for name, row in rows.items()])
    return [f"## Common corruptions\n\nAccuracy in per cent (Hendrycks and Dietterich, 2019).\n\n{text}"]


def save_figure(path: Path, evaluation: Evaluation) -> Path:
    """Draws the table as a heat map, and returns the file."""
    severities, rows = corruption_rows(evaluation)
    figure = Figure(figsize=(7, 1.6 + 0.34 * len(rows)), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.imshow(list(rows.values()), cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for place, row in enumerate(rows.values()):
        for column, value in enumerate(row):
            colour = "white" if value < 0.6 else "black"
            axes.text(column, place, per_cent(value), ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(severities) + 1), [*map(str, severities), "mean"])
    axes.set_yticks(range(len(rows)), [name.replace("_", " ") for name in rows])
    axes.set_xlabel("severity")
    natural = per_cent(evaluation.natural.accuracy)
    axes.set_title(f"{evaluation.model}: accuracy under common corruptions, % (natural {natural})", fontsize=11)
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, format="png")
    return path
