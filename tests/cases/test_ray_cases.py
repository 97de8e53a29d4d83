"""Cases that start Ray or an MLflow server; each starts the programs as a user does."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from distributed_autolora.data.catalog import embedded_folder
from distributed_autolora.data.parquet.reader import read_images
from distributed_autolora.files import read_json
from distributed_autolora.orchestration.mlflow_tracking.connection import connect
from distributed_autolora.records import Evaluation, from_json
from tests.cases.shared import OWN, TINY, folder
from tests.orchestration.mlflow_tracking.tracking_server import TrackingServer
from tests.programs import ROOT, below, environment, program

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


def started(log: Path, *words: object) -> subprocess.Popen[bytes]:
    """Starts a run below the folder of its log; a pipe would stay open until the last of Ray's processes has ended."""
    command = [sys.executable, "jobs/finetune.py", *map(str, words)]
    with log.open("wb") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment(log.parent / "home"), stdout=file, stderr=file)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with a finished run of two epochs, "trained"."""
    home = tmp_path_factory.mktemp("home")
    words = ("--run.name", "trained", *TINY, "--data.train-images", "1000", "--optimization.epochs", "2")
    done = program("jobs/finetune.py", *words, base=environment(home))
    assert done.returncode == 0, done.stderr
    return home


def test_01_new_photographs_in_another_order_of_classes(home: Path, tmp_path: Path) -> None:
    table = read_images(embedded_folder(), "test")
    for row in range(200):
        place = tmp_path / "photos" / table.class_names[int(table.labels[row])]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{row}.png").write_bytes(table.encoded(row))
    source = ("--source", tmp_path / "photos", "--output", tmp_path / "data", "--test-fraction", "0.5")
    assert program("jobs/prepare_data.py", "folder", *source).returncode == 0
    data = read_images(str(tmp_path / "data"), "test")
    assert data.class_names != table.class_names
    words = ("--model", "trained", "--data", tmp_path / "data", "--attacks", "fgsm", "--num-workers", "1")
    done = program("jobs/evaluate.py", *words, "--no-export", "--no-sanity", base=environment(home))
    assert done.returncode == 0, done.stderr
    (file,) = (home / "runs" / "trained").glob("evaluation-on-*/evaluation.json")
    found = from_json(Evaluation, read_json(file), str(file))
    assert found.class_names == table.class_names
    outcomes = pq.read_table(file.with_name("outcomes.parquet"))
    rows = [int(Path(row_id).stem) for row_id in outcomes["row_id"].to_pylist()]
    assert outcomes["label"].to_pylist() == table.labels[rows].tolist()
    own = pq.read_table(home / "runs" / "trained" / "outcomes.parquet")
    before = dict(zip(own["row"].to_pylist(), own["natural_prediction"].to_pylist(), strict=True))
    same = [before[row] == seen for row, seen in zip(rows, outcomes["natural_prediction"].to_pylist(), strict=True)]
    assert sum(same) >= 98, "the run's own final evaluation, up to rounding in other batches"


def test_03_sigterm_while_ray_starts(tmp_path: Path) -> None:
    for attempt in range(3):
        log = tmp_path / f"log{attempt}"
        process = started(log, "--run.name", f"s{attempt}", *TINY)
        while not any("gcs_server" in name for name in _commands(process.pid)):
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5 * attempt)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=200) == 130, log.read_text()
        assert log.read_text().count("Interrupted") == 1


def _commands(top: int) -> list[str]:
    found = []
    for pid in below(top):
        try:
            found.append(Path(f"/proc/{pid}/cmdline").read_text())
        except OSError:
            continue
    return found


def test_05_the_same_command_twice_at_once(tmp_path: Path) -> None:
    logs = [tmp_path / name for name in ("one", "other")]
    both = [started(log, "--run.name", "same", *TINY) for log in logs]
    statuses = sorted(process.wait(timeout=600) for process in both)
    said = [log.read_text() for log in logs]
    assert statuses == [0, 2], said
    assert sum('error: Run "same" is in use by process' in text for text in said) == 1
    assert [path.name for path in (tmp_path / "home" / "runs").iterdir()] == ["same"]


def test_08_a_folder_that_ray_cannot_use(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "x" * 90):
        base = environment(tmp_path / "home", RAY_TMPDIR=str(tmp_path / place))
        done = program("jobs/finetune.py", "--run.name", "a", *TINY, base=base)
        assert done.returncode == 2
        last = done.stderr.splitlines()[-1]
        assert re.fullmatch(r"error: Ray's folder .* cannot be used .*\. Set RAY_TMPDIR .*", last), done.stderr


def test_10_modules_in_the_current_folder_are_not_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('this is not PyTorch')")
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("raise RuntimeError('this is not timm')")
    words = (ROOT / "jobs" / "finetune.py", "--run.name", "cwd", *TINY)
    done = program(*words, cwd=tmp_path, base=environment(tmp_path / "home"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_12_a_server_on_loopback_behind_a_proxy(tmp_path: Path) -> None:
    server = TrackingServer(tmp_path)
    server.start()
    try:
        words = ("--run.name", "p", "--run.mlflow-uri", server.uri, "--system-metrics", *TINY)
        base = environment(tmp_path / "home", http_proxy="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9")
        done = program("jobs/finetune.py", *words, base=base)
        run_id = read_json(tmp_path / "home" / "runs" / "p" / "run.json")["mlflow"]["run_id"]
        logged = connect(server.uri).get_run(run_id).data.metrics
    finally:
        server.kill()
    assert done.returncode == 0, done.stderr
    assert "MLflow" not in done.stderr, done.stderr
    assert "system/cpu_utilization_percentage" in logged, "a worker logs it"


def test_17_names_beyond_ascii_in_another_locale(tmp_path: Path) -> None:
    """The part without a locale of its own is in tests/test_console.py: here Ray's workers read such a path."""
    data = tmp_path / "\u00fc"
    source = folder(tmp_path / "in", 12, "K\u00e4se", "b")
    base = environment(tmp_path / "home", LC_ALL="C", PYTHONUTF8="1")
    assert program("jobs/prepare_data.py", "folder", "--source", source, "--output", data, base=base).returncode == 0
    done = program("jobs/finetune.py", "--run.name", "u", "--data.path", data, *OWN, base=base)
    assert done.returncode == 0, done.stderr
    assert "class" not in done.stderr


def test_18_class_names_that_no_font_has(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", 12, "\u732b", "\u72ac")
    base = environment(tmp_path / "home")
    program("jobs/prepare_data.py", "folder", "--source", source, "--output", tmp_path / "data", base=base)
    done = program("jobs/finetune.py", "--run.name", "x", "--data.path", tmp_path / "data", *OWN, base=base)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "Glyph" not in done.stderr
    assert (tmp_path / "home" / "runs" / "x" / "samples.png").is_file()
    assert os.environ.get("PYTHONWARNINGS") is None
