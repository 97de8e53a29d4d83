"""The report of a study: Markdown, CSV, figures and per-image outcomes, written into its folder."""

import csv
import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from distributed_autolora.files import atomic_write, writing
from distributed_autolora.reporting.statistics import wilson_interval
from distributed_autolora.reporting.study.figures import accuracies_figure, cost_figure, search_figure
from distributed_autolora.reporting.study.figures import similarity_figure as similarity
from distributed_autolora.reporting.study.loading import StudyResults, StudyRun, load_study
from distributed_autolora.reporting.study.outcomes import pooled_outcomes
from distributed_autolora.reporting.study.run_tables import cost_of
from distributed_autolora.reporting.study.text import report_text

_FIGURES: dict[str, Callable[[StudyResults], Figure | None]] = {
    "accuracies.png": accuracies_figure,
    "cost.png": cost_figure,
    "search.png": search_figure,
    "gradient_similarity.png": similarity,
}


def write_report(study_folder: Path) -> Path:
    """Writes STUDY/report/ from whatever the study has so far, and returns the path of its report.md.

    Beside report.md: results.csv (one line a run), outcomes.parquet (one line an image of each evaluated final run) and
    the figures that there are numbers for. Files of an earlier report that no longer apply are removed.

    Raises:
        UserError: when the folder holds no study, or one of its files is corrupt.
        StorageError: when a file of the report cannot be written.
    """
    study = load_study(study_folder)
    report = study_folder / "report"
    with writing(report):
        report.mkdir(exist_ok=True)
    pooled = pooled_outcomes(study)
    save = None if pooled is None else partial(pq.write_table, pooled, compression="zstd")
    _write(report / "outcomes.parquet", save)
    figures = []
    for name, draw in _FIGURES.items():
        figure = draw(study)
        if _write(report / name, None if figure is None else partial(figure.savefig, format="png")):
            figures.append(name)
    texts = {"results.csv": results_csv(study), "report.md": report_text(study, pooled, figures)}
    for name, text in texts.items():
        _write(report / name, partial(Path.write_bytes, data=text.encode()))
    return report / "report.md"


def results_csv(study: StudyResults) -> str:
    """Returns one line a run, search and final; fractions in [0, 1]; a number that does not exist is empty."""
    records = [_record(study, run) for run in study.runs]
    columns = dict.fromkeys(key for record in records for key in record) or dict.fromkeys(["arm"])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _record(study: StudyResults, run: StudyRun) -> dict[str, Any]:
    cost = cost_of(run)
    record: dict[str, Any] = {
        "arm": run.arm,
        "phase": run.phase,
        "seed": run.seed,
        "settings": json.dumps(run.settings),
        "run": run.run,
        "status": run.status,
        "error": run.error,
        "epochs": len(run.history),
        "best_epoch": run.history[-1].best_epoch if run.history else None,
        "best_val/robust_accuracy": run.validation_accuracy,
        "worker_seconds": cost.worker_seconds,
        "forward_passes": cost.forward_passes,
        "backward_passes": cost.backward_passes,
    }
    for metric in study.metrics:
        counts = run.counts.get(metric) if run.phase == "final" else None
        known = (counts.accuracy, counts.correct, counts.total) if counts else (None,) * 3
        ends = wilson_interval(counts.correct, counts.total) if counts else (None,) * 2
        for name, value in zip(("", "/correct", "/total", "/low", "/high"), (*known, *ends), strict=True):
            record[f"test/{metric}{name}"] = value
    return record


def _write(file: Path, save: Callable[[Path], object] | None) -> bool:
    """Writes a file, or removes that of an earlier report; tells whether there is one."""
    if save is None:
        file.unlink(missing_ok=True)
        return False
    with atomic_write(file, pa.ArrowException) as unfinished:
        save(unfinished)
    return True
