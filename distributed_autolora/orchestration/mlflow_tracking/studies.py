"""What a study leaves on its own MLflow run, the parent of its runs'."""

from __future__ import annotations

from pathlib import Path

from distributed_autolora.orchestration.mlflow_tracking.connection import PATIENT_S, asking, connect
from distributed_autolora.reporting.study.mlflow_description import study_description

PARENT = "mlflow.parentRunId"
"""Tag by which MLflow shows a run below another."""
_TAG_LENGTH = 8000


def log_study(uri: str, run_id: str, report: Path) -> None:
    """Writes the files of a report and its text, without pictures, as the run's description; files replace older ones.

    Args:
        uri: tracking URI.
        run_id: the study's run.
        report: report.md, in its folder.

    Raises:
        TrackingError: when not everything was written.
    """
    with asking(uri, PATIENT_S, retries=2):
        client = connect(uri)
        client.log_artifacts(run_id, str(report.parent), "report")
        client.set_tag(run_id, "mlflow.note.content", study_description(report.read_text(), _TAG_LENGTH))
