"""What runs, evaluations and studies leave on real stores."""

import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.orchestration.mlflow_tracking import (
    TrackingError,
    default_tracking_uri,
    log_evaluation,
    log_model,
    log_result,
    log_study,
)
from distributed_autolora.orchestration.mlflow_tracking.connection import connect, truncated
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.orchestration.runs.results import track
from distributed_autolora.records import TrackedRun
from tests.orchestration.mlflow_tracking.tracking_server import TrackingServer, opened, steps
from tests.programs import program
from tests.reporting import runs


def test_a_result_is_logged_once_with_its_files_and_description(home: Path, tmp_path: Path) -> None:
    uri, history = default_tracking_uri(home), runs.history(6)
    result = runs.result(history)
    run_id = opened(uri, home)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"\x00\x01" * 100)
    for _ in range(2):
        log_result(uri, run_id, result, history, [weights], {"config.yaml": "recipe: demo\n"})
    client = connect(uri)
    run = client.get_run(run_id)
    assert run.data.metrics["test/robust_accuracy_pgd10"] == pytest.approx(0.833)
    assert run.data.metrics["test/linear_head_natural_accuracy"] == pytest.approx(0.789)
    assert steps(uri, run_id, "test/natural_accuracy") == [result.best_epoch]
    assert steps(uri, run_id) == [1, 2, 3, 4, 5, 6]
    assert "--config config.yaml" in run.data.tags["mlflow.note.content"]
    assert run.data.tags["masking"] == "unchecked"
    (tmp_path / "downloaded").mkdir()
    folder = Path(client.download_artifacts(run_id, "", str(tmp_path / "downloaded")))
    assert (folder / "model.safetensors").read_bytes() == weights.read_bytes()
    assert (folder / "config.yaml").read_text() == "recipe: demo\n"


def test_a_run_that_never_opened_the_test_split_is_tracked_without_test_metrics_and_model(
    home: Path, tmp_path: Path
) -> None:
    uri, history = default_tracking_uri(home), runs.history(6)
    run_id = opened(uri, home)
    closed: dict[str, Any] = {"test": None, "test_images": None, "linear_head": None}
    result = replace(runs.result(history), **closed, mlflow=TrackedRun(uri, run_id))
    folder = RunFolder(tmp_path)
    folder.write_history(history)
    assert track(ExperimentConfig(), folder, result)
    run = connect(uri).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert not [name for name in run.data.metrics if name.startswith("test/")]
    assert run.data.metrics["cost/forward_passes"] == sum(record.passes.forward for record in history)
    assert run.outputs is None or not run.outputs.model_outputs


class Forbidding(BaseHTTPRequestHandler):
    """Refuses every request, as a server does that wants another user."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.end_headers()
        self.wfile.write(b"Permission denied\nmore")

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def test_a_refusal_is_not_said_to_be_an_absence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = runs.history(2)
    folder = RunFolder(tmp_path)
    folder.write_history(history)
    with ThreadingHTTPServer(("127.0.0.1", 0), Forbidding) as forbidding:
        threading.Thread(target=forbidding.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{forbidding.server_port}"
        result = replace(runs.result(history), test=None, mlflow=TrackedRun(uri, "0" * 32))
        assert not track(ExperimentConfig(), folder, result)
        forbidding.shutdown()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: MLflow at {uri} did not take everything (")
    assert "403" in line
    assert "Permission denied" in line
    assert line.endswith(f"the same command writes what is missing there. {tmp_path} holds everything.")


def test_a_run_that_its_store_has_lost_is_said_to_be_lost(home: Path, tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("# Report")
    uri, lost = default_tracking_uri(home), "0" * 32
    with pytest.raises(TrackingError, match=r"did not take everything \(.*0000 not found\): once that is fixed"):
        log_study(uri, lost, tmp_path / "report.md", "note")
    with pytest.raises(TrackingError, match=r"did not take everything \(.*0000 not found\): once that is fixed"):
        log_evaluation(uri, lost, metrics={"a": 1.0}, tags={}, files=[])


class TinyClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.features((x - 0.3) / 0.4).mean((2, 3)))
        return logits


LOADING = """
import sys
sys.modules["distributed_autolora"] = None  # as where it is not installed: importing it fails
import numpy
import torch
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pytorch.load_model(sys.argv[2])
images = torch.from_numpy(numpy.load(sys.argv[3]))
logits = torch.cat([model(images[:1]), model(images[1:])])
numpy.save(sys.argv[4], logits.detach().numpy())
"""


def test_a_logged_model_loads_where_this_package_is_not_installed(server: TrackingServer, tmp_path: Path) -> None:
    model = TinyClassifier().train()
    images = torch.rand(7, 1, 8, 8)
    run_id = opened(server.uri, tmp_path, experiment="on the server")
    for _ in range(2):
        log_model(server.uri, run_id, model, images[:2], step=3)
    assert model.training
    client = connect(server.uri)
    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.outputs is not None
    (output,) = run.outputs.model_outputs
    assert output.step == 3
    stored = client.get_logged_model(output.model_id)
    assert stored.experiment_id == run.info.experiment_id
    assert stored.artifact_location.startswith("mlflow-artifacts:")
    model_uri = f"models:/{output.model_id}"
    np.save(tmp_path / "images.npy", images.numpy())
    arguments = [server.uri, model_uri, tmp_path / "images.npy", tmp_path / "logits.npy"]
    loaded = program("-I", "-c", LOADING, *arguments, cwd=tmp_path)
    assert loaded.returncode == 0, loaded.stderr
    with torch.no_grad():
        expected = model.eval()(images).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, atol=1e-5)


def test_a_model_needs_an_example_of_two_images(home: Path) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        log_model(default_tracking_uri(home), "0" * 32, TinyClassifier(), torch.rand(1, 1, 8, 8))


def test_truncation_keeps_short_texts_and_the_limit() -> None:
    assert truncated("abc", 3) == "abc"
    assert truncated("abcdef", 5) == "ab..."
