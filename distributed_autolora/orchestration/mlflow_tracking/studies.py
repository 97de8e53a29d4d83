"""What a study leaves on its own MLflow run, the parent of its runs'."""

from __future__ import annotations

from pathlib import Path

from distributed_autolora.orchestration.mlflow_tracking.connection import LONG_S, connect, requests_to

PARENT = "mlflow.parentRunId"
"""Tag by which MLflow shows a run below another."""


def log_study(uri: str, run_id: str, report: Path, note: str) -> None:
    """Writes the files of a report, which replace older ones, and the run's description.

    Raises:
        TrackingError: when not everything was written.
    """
    with requests_to(uri, LONG_S, retries=2):
        client = connect(uri)
        client.log_artifacts(run_id, str(report.parent), "report")
        client.set_tag(run_id, "mlflow.note.content", note)
