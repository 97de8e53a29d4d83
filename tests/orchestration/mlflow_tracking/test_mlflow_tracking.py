"""Tracking against real stores: SQLite files and a server that is killed and started again."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from distributed_autolora.config import ExperimentConfig
from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.mlflow_tracking import (
    MetricWriter,
    TrackingError,
    default_tracking_uri,
    finish_run,
    log_evaluation,
    log_model,
    log_result,
    log_study,
    open_run,
)
from distributed_autolora.orchestration.mlflow_tracking.connection import connect, failures, truncated
from distributed_autolora.orchestration.runs.folder import RunFolder
from distributed_autolora.orchestration.runs.results import track
from distributed_autolora.records import EpochRecord, TrackedRun
from tests.orchestration.mlflow_tracking.tracking_server import TrackingServer, free_port
from tests.reporting import runs

ROBUST = "val/robust_accuracy/pgd10"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    folder = tmp_path_factory.mktemp("server")
    # A database that is set up already saves its migrations.
    connect(default_tracking_uri(home))
    shutil.copy(home / "mlflow.db", folder / "server.db")
    started = TrackingServer(folder)
    started.start()
    yield started
    started.kill()


def opened(uri: str, home: Path, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "uri": uri,
        "experiment": "tests",
        "run_name": "one",
        "params": {"optimization.lr": 0.01, "data.path": None},
        "tags": {"recipe": "demo"},
        "run_id": None,
        "home": home,
    }
    return open_run(**(arguments | changes))


def steps(uri: str, run_id: str, key: str = ROBUST) -> list[int]:
    return [metric.step for metric in connect(uri).get_metric_history(run_id, key)]


def assert_each_point_once(uri: str, run_id: str, history: list[EpochRecord]) -> None:
    expected = {
        (key, record.epoch): float(value)
        for record in history
        for key, value in record.metrics().items()
        if key != "epoch"
    }
    client = connect(uri)
    found = [
        (metric.key, metric.step, metric.value)
        for key in client.get_run(run_id).data.metrics
        for metric in client.get_metric_history(run_id, key)
    ]
    assert len(found) == len(expected)
    assert {(key, step): value for key, step, value in found} == pytest.approx(expected)


def test_a_run_has_every_parameter_and_tag_and_is_running(home: Path) -> None:
    uri = default_tracking_uri(home)
    long = "x" * 7000
    run = connect(uri).get_run(opened(uri, home, params={f"group.key{i}": i for i in range(130)} | {"long": long}))
    assert (run.info.status, run.info.run_name, run.data.tags["recipe"]) == ("RUNNING", "one", "demo")
    assert run.data.params["group.key129"] == "129"
    assert len(run.data.params) == 131
    assert run.data.params["long"].endswith("...")
    assert len(run.data.params["long"]) == 6000
    assert run.info.artifact_uri is not None
    assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(home / "mlartifacts")


def test_a_continued_run_keeps_its_parameters_and_runs_again(home: Path) -> None:
    uri = default_tracking_uri(home)
    run_id = opened(uri, home)
    assert finish_run(uri, run_id, status="FAILED")
    assert connect(uri).get_run(run_id).info.status == "FAILED"
    assert opened(uri, home, run_id=run_id, params={"optimization.lr": 5, "scaling.num_workers": 3}) == run_id
    run = connect(uri).get_run(run_id)
    assert (run.info.status, run.data.params["optimization.lr"]) == ("RUNNING", "0.01")
    assert run.data.params["scaling.num_workers"] == "3"


def test_writing_the_same_history_twice_adds_nothing(home: Path) -> None:
    uri, history = default_tracking_uri(home), runs.history(20)
    run_id = opened(uri, home)
    writer = MetricWriter(uri, run_id)
    assert writer.write(history[:3])
    assert writer.write(history[:3])
    assert writer.write(history[:9])
    # A second writer that knows nothing goes on, with more than one batch of 1,000 metrics.
    history = runs.history(60)
    assert MetricWriter(uri, run_id).write(history)
    assert_each_point_once(uri, run_id, history)


def test_a_writer_that_starts_behind_the_run_repeats_nothing(home: Path) -> None:
    uri, history = default_tracking_uri(home), runs.history(12)
    run_id = opened(uri, home)
    assert MetricWriter(uri, run_id).write(history)
    behind = MetricWriter(uri, run_id)
    for epochs in (8, 9, 12):  # "restored_epoch" is None up to epoch 8
        assert behind.write(history[:epochs])
    assert_each_point_once(uri, run_id, history)


def test_each_step_appears_once_although_the_server_goes_away(server: TrackingServer, home: Path) -> None:
    history = runs.history(12)
    run_id = opened(server.uri, home)
    writer = MetricWriter(server.uri, run_id, retry_after_s=0.5)
    assert writer.write(history[:4])
    # Another writer gets ahead, which this one finds out when it looks after a failed write.
    assert MetricWriter(server.uri, run_id).write(history[:8])
    server.kill()
    start = time.monotonic()
    assert not writer.write(history[:9])
    assert not finish_run(server.uri, run_id, status="FAILED")
    with pytest.raises(TrackingError, match=r"is away \(connection (refused|lost)\): once it is back"):
        log_result(server.uri, run_id, runs.result(history), history, {})
    assert time.monotonic() - start < 15
    server.start()
    time.sleep(0.5)
    assert writer.write(history[:10])
    assert writer.write(history)
    assert_each_point_once(server.uri, run_id, history)


def test_a_silent_server_costs_a_few_seconds_and_is_then_left_alone() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        writer = MetricWriter(f"http://127.0.0.1:{silent.getsockname()[1]}", "0" * 32)
        start = time.monotonic()
        assert not writer.write(runs.history(2))
        first = time.monotonic() - start
        assert not writer.write(runs.history(3))
        assert first < 8
        assert time.monotonic() - start - first < 0.1
        with pytest.raises(TrackingError, match=r"is away \(no answer in time\)"):
            writer.send(runs.history(2))


def test_waiting_limits_do_not_outlive_a_call(home: Path) -> None:
    before = dict(os.environ)
    assert not MetricWriter(f"http://127.0.0.1:{free_port()}", "0" * 32).write(runs.history(1))
    changed = {name for name in os.environ if os.environ[name] != before.get(name)}
    assert not {name for name in changed if name.startswith("MLFLOW_HTTP")}


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("http://127.0.0.1:1", "connection refused"),
        ("http://mlflow.invalid:5000", "unknown host name"),
        ("postgresql://someone@127.0.0.1:1/mlflow", "does not answer"),
        ("sqlite:///mlflow.db", "absolute path"),
        ("sqlite:////proc/nowhere/mlflow.db", "cannot be written"),
        ("runs/mlruns", "is no MLflow tracking URI"),
    ],
)
def test_a_uri_that_cannot_be_used_is_refused_quickly_in_one_line(uri: str, says: str, tmp_path: Path) -> None:
    failures()  # importing mlflow is not part of the time
    start = time.monotonic()
    with pytest.raises(UserError, match=says) as refused:
        opened(uri, tmp_path)
    assert time.monotonic() - start < 10
    assert "\n" not in str(refused.value)
    assert uri.rpartition("@")[2].rpartition("//")[2] in str(refused.value)


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("my notes, not a database")
    with pytest.raises(UserError, match="no SQLite database"):
        opened(default_tracking_uri(tmp_path), tmp_path)
    assert (tmp_path / "mlflow.db").read_text() == "my notes, not a database"


def test_a_run_that_the_store_does_not_know_is_refused(home: Path) -> None:
    uri = default_tracking_uri(home)
    with pytest.raises(UserError, match=r"does not know the run 0000.*--fresh"):
        opened(uri, home, run_id="0" * 32)
    run_id = opened(uri, home)
    connect(uri).delete_run(run_id)
    with pytest.raises(UserError, match="was deleted"):
        opened(uri, home, run_id=run_id)


def test_two_processes_can_open_a_fresh_database_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from distributed_autolora.orchestration.mlflow_tracking import open_run, default_tracking_uri\n"
        "home = Path(sys.argv[1])\n"
        "print(open_run(uri=default_tracking_uri(home), experiment='new', run_name='r', params={'a': 1}, tags={},\n"
        "               run_id=None, home=home))\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], [error.decode() for _, error in outputs]
    assert not any(error for _, error in outputs)  # neither a migration log nor a warning
    client = connect(default_tracking_uri(tmp_path))
    experiments = {client.get_run(output.decode().strip()).info.experiment_id for output, _ in outputs}
    assert len(experiments) == 1


def test_a_result_is_logged_once_with_its_files_and_description(home: Path, tmp_path: Path) -> None:
    from distributed_autolora.reporting.run.samples_figure import samples_figure

    uri, history = default_tracking_uri(home), runs.history(6)
    result = runs.result(history)
    run_id = opened(uri, home)
    weights = tmp_path / "weights of the best epoch.bin"
    weights.write_bytes(b"\x00\x01" * 100)
    artifacts: dict[str, Any] = {
        "config.yaml": "recipe: demo\n",
        "model.safetensors": weights,
        "figures/samples.png": samples_figure(runs.samples(2), result.class_names, 0.1),
    }
    for _ in range(2):
        log_result(uri, run_id, result, history, artifacts)
    client = connect(uri)
    run = client.get_run(run_id)
    assert run.data.metrics["test/robust_accuracy/pgd10"] == pytest.approx(0.833)
    assert run.data.metrics["test/linear_head/natural_accuracy"] == pytest.approx(0.789)
    assert steps(uri, run_id, "test/natural_accuracy") == [result.best_epoch]
    assert steps(uri, run_id) == [1, 2, 3, 4, 5, 6]
    assert "--config config.yaml" in run.data.tags["mlflow.note.content"]
    assert run.data.tags["masking"] == "unchecked"
    folder = Path(client.download_artifacts(run_id, "", str(tmp_path)))
    assert (folder / "model.safetensors").read_bytes() == weights.read_bytes()
    assert (folder / "config.yaml").read_text() == "recipe: demo\n"
    assert (folder / "figures" / "samples.png").read_bytes().startswith(b"\x89PNG")


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
    assert run.data.metrics["cost/forward_passes"] == result.cost.forward_passes
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
    arguments = [server.uri, model_uri, str(tmp_path / "images.npy"), str(tmp_path / "logits.npy")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    loaded = subprocess.run(
        [sys.executable, "-I", "-c", LOADING, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
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
