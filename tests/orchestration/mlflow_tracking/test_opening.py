"""Opening and continuing MLflow runs on real stores."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from requests.utils import should_bypass_proxies

from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.mlflow_tracking import (
    DataInput,
    MetricWriter,
    default_tracking_uri,
    finish_run,
    reach_store,
)
from distributed_autolora.orchestration.mlflow_tracking.connection import connect, failures, without_proxy
from tests.orchestration.mlflow_tracking.tracking_server import free_port, opened
from tests.reporting import runs


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


def test_a_run_names_its_dataset_once(home: Path) -> None:
    uri = default_tracking_uri(home)
    data = DataInput("pets", "ab" * 32, "s3://bucket/pets", "training")
    run_id = opened(uri, home, data=data)
    opened(uri, home, run_id=run_id, data=data)
    inputs = connect(uri).get_run(run_id).inputs
    assert inputs is not None
    (found,) = inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest, found.dataset.source_type) == ("pets", "ab" * 18, "s3")
    assert found.dataset.source == '{"uri": "s3://bucket/pets"}'
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "training")]


@pytest.mark.parametrize("known", [{}, {"no_proxy": "corp.org"}, {"NO_PROXY": "corp.org,127.0.0.1"}])
def test_a_server_on_loopback_is_asked_without_the_proxy(known: dict[str, str]) -> None:
    found = without_proxy({"http_proxy": "http://proxy:9", **known})
    assert found["no_proxy"] == found["NO_PROXY"]
    for host in ("127.0.0.1", "localhost", *(["corp.org"] if known else [])):
        assert should_bypass_proxies(f"http://{host}:5000/health", found["no_proxy"])
    assert not should_bypass_proxies("http://mlflow.example:5000", found["no_proxy"])


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


def test_a_damaged_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"SQLite format 3\x00" + b"\xff" * 500)
    with pytest.raises(UserError, match=r"file is not a database.*--mlflow-uri"):
        reach_store(default_tracking_uri(tmp_path))


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
