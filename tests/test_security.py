"""Nothing listens beyond this machine, nothing from outside is executed, and no secret of a URI is left behind."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
import tarfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from distributed_autolora.cli import parse_training_flags
from distributed_autolora.data.collections_own import dogs
from distributed_autolora.data.collections_torchvision import cifar
from distributed_autolora.errors import UserError, masked
from distributed_autolora.models import build, save_weights
from distributed_autolora.models.export import export_graph
from distributed_autolora.models.portable import PortableModel, read_graph
from distributed_autolora.orchestration.mlflow_tracking import connect, newest_secret, open_run
from distributed_autolora.orchestration.preflight import check_inputs, find_inputs
from distributed_autolora.orchestration.run_folder import RunFolder, config_text, read_config
from distributed_autolora.orchestration.whole_files import SECRETS_FILE, read_sealed, write_json, write_text
from distributed_autolora.training.checkpoint import TrainingState
from distributed_autolora.training.distributed import open_meeting_point
from tests.orchestration.test_local_cluster import listening
from tests.orchestration.tracking_server import TrackingServer, free_port
from tests.training.tasks import small_config, write_task

ROOT = Path(__file__).parent.parent
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
SECRET = "hunter2hunter2"


def descendants(root: int) -> set[int]:
    """Returns a process and everything below it."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(file.parent.name)] = int(file.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    below = {root}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return below


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.05)


# --- what listens


LOCAL_RAY = """
import sys
from distributed_autolora.config import ScalingConfig
from distributed_autolora.orchestration.cluster import connect
connect(ScalingConfig(num_workers=1))
import ray
ray.get(ray.remote(lambda: None).remote())
print("up", flush=True)
sys.stdin.read()
"""


def test_a_local_ray_listens_on_loopback_only() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, "-c", LOCAL_RAY]
    environment |= {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "up\n"
        sockets = listening(descendants(program.pid))
        program.communicate("")
    assert len(sockets) > 5, "the raylet, the GCS and a worker at least"
    assert {address for address, _ in sockets} <= LOOPBACK


def test_workers_meet_on_the_given_address_only() -> None:
    port, store = open_meeting_point("127.0.0.1")
    own = {address for address, number in listening({os.getpid()}) if number == port}
    joined = torch.distributed.TCPStore("127.0.0.1", port, is_master=False)  # type: ignore[attr-defined]
    joined.set("key", "value")
    assert store.get("key") == b"value"
    assert own
    assert own <= LOOPBACK


@contextmanager
def make_mlflow(home: Path, stamp: Path) -> Iterator[tuple[int, int]]:
    """Runs `make mlflow` with this interpreter, and yields its process id and port once it answers."""
    port = free_port()
    stamp.touch()
    command = ["make", "mlflow", f"PORT={port}", f"BIN={Path(sys.executable).parent}", f"INSTALLED={stamp}"]
    environment = {**os.environ, "DISTRIBUTED_AUTOLORA_HOME": str(home), "PYTHONPATH": str(ROOT)}
    program = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_for(lambda: any(number == port for _, number in listening(descendants(program.pid))), "`make mlflow`")
        yield program.pid, port
    finally:
        for pid in descendants(program.pid):
            os.kill(pid, 9)
        program.wait()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_make_mlflow_listens_on_loopback_only(tmp_path: Path) -> None:
    connect(f"sqlite:///{tmp_path}/mlflow.db")
    with make_mlflow(tmp_path, tmp_path / "installed") as (pid, port):
        sockets = listening(descendants(pid))
    assert port in {number for _, number in sockets}
    assert {address for address, _ in sockets} <= LOOPBACK


# --- pickles


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.file), "w"))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that a payload would create; the payload is seen to work first."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "proof")))
    assert (tmp_path / "proof").exists()
    return tmp_path / "executed"


def flags_of(task: str, *more: str) -> list[str]:
    small = ["--recipe", "demo", "--data.task", "halves", "--model.weights", "None", "--data.train-images", "None"]
    return [*small, "--data.path", task, *more]


def look_at_inputs(flags: list[str]) -> None:
    config, inputs = find_inputs(parse_training_flags("", "demo", flags).experiment)
    check_inputs(config, inputs)


def test_a_pickle_as_weights_is_refused_before_a_run_starts(tmp_path: Path, mark: Path) -> None:
    task, weights = write_task(tmp_path / "task", train=130), tmp_path / "weights.pth"
    torch.save({"state_dict": {}, "epoch": Payload(mark)}, weights)
    with pytest.raises(UserError, match="without executing code from it"):
        look_at_inputs(flags_of(task, "--model.weights", str(weights)))
    with pytest.raises(UserError, match="also give"):
        look_at_inputs(flags_of(task, "--model.weights", str(weights), "--model.allow-pickle"))
    assert not mark.exists()


def _pickled(mark: Path) -> bytes:
    return pickle.dumps(Payload(mark))


def _saved(mark: Path) -> bytes:
    file = io.BytesIO()
    torch.save(Payload(mark), file)
    return file.getvalue()


@pytest.mark.parametrize("content", [_pickled, _saved])
@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_pickle_in_a_checkpoint_is_not_executed(
    tmp_path: Path, mark: Path, name: str, content: Callable[[Path], bytes]
) -> None:
    TrainingState({"w": torch.ones(1)}, {}, {}, [], {}).save(tmp_path)
    TrainingState.load(tmp_path)
    (tmp_path / name).write_bytes(content(mark))
    with pytest.raises(UserError, match="cannot be read"):
        TrainingState.load(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "history.json", "result.json"])
def test_a_pickle_in_a_run_folder_is_not_executed(tmp_path: Path, mark: Path, name: str) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    tag = f"!!python/object/apply:builtins.open ['{mark}', 'w']\n".encode()
    for content in (_pickled(mark), tag):
        (folder.path / name).write_bytes(content)
        with pytest.raises(UserError):
            folder.config() if name == "config.yaml" else folder.read(name)
    assert not mark.exists()


def _parquet_file(mark: Path, task: Path) -> None:
    (task / "train.parquet").write_bytes(_pickled(mark))


def _parquet_image(mark: Path, task: Path) -> None:
    table = pq.read_table(task / "train.parquet")
    images = table["image"].to_pylist()
    images[7] = _pickled(mark)
    index = table.schema.get_field_index("image")
    kept = {key: text for key, text in pq.read_metadata(task / "train.parquet").metadata.items() if key[:5] != b"ARROW"}
    changed = table.set_column(index, "image", pa.array(images)).replace_schema_metadata(kept)
    pq.write_table(changed, task / "train.parquet")


def _numpy_image(mark: Path, task: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.array([Payload(mark)], dtype=object), allow_pickle=True)
    table = pq.read_table(task / "train.parquet")
    images = [file.getvalue(), *table["image"].to_pylist()[1:]]
    index = table.schema.get_field_index("image")
    kept = {key: text for key, text in pq.read_metadata(task / "train.parquet").metadata.items() if key[:5] != b"ARROW"}
    pq.write_table(
        table.set_column(index, "image", pa.array(images)).replace_schema_metadata(kept), task / "train.parquet"
    )


@pytest.mark.parametrize("poison", [_parquet_file, _parquet_image, _numpy_image])
def test_a_pickle_as_data_is_not_executed(tmp_path: Path, mark: Path, poison: Callable[[Path, Path], None]) -> None:
    task = write_task(tmp_path / "task", train=130)
    poison(mark, Path(task))
    with pytest.raises(UserError, match=r"train\.parquet|row"):
        look_at_inputs(flags_of(task))
    assert not mark.exists()


def test_pickles_among_the_sources_of_a_task_are_not_executed(tmp_path: Path, mark: Path) -> None:
    batches = tmp_path / "cifar" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (batches / name).write_bytes(_pickled(mark))
    stanford = tmp_path / "dogs"
    stanford.mkdir()
    with tarfile.open(stanford / "lists.tar", "w") as archive:
        for name in ("train_list.mat", "test_list.mat"):
            member = tarfile.TarInfo(name)
            member.size = len(_pickled(mark))
            archive.addfile(member, io.BytesIO(_pickled(mark)))
    (stanford / "images.tar").write_bytes((stanford / "lists.tar").read_bytes())
    with pytest.raises(UserError, match="MD5 is checked"):
        cifar(tmp_path / "cifar", task="cifar10", protocol="clean", unverified=False)
    with pytest.raises(UserError, match="cannot be read"):
        dogs(stanford, protocol="clean")
    assert not mark.exists()


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of torch.export as this package writes it."""
    file = tmp_path_factory.mktemp("graph") / "model.pt2"
    network = build("small_resnet", 3, mean=(0.5,), std=(0.25,))
    export_graph(network, torch.rand(2, 1, 12, 12), file)
    return file


def rewritten(graph: Path, target: Path, change: Callable[[str, bytes], bytes], more: dict[str, bytes]) -> Path:
    """Copies an archive with its records changed, and more records."""
    with zipfile.ZipFile(graph) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as copy:
        root = source.namelist()[0].partition("/")[0]
        for name in source.namelist():
            copy.writestr(name, change(name, source.read(name)))
        for name, content in more.items():
            copy.writestr(f"{root}/{name}", content)
    return target


def in_record(ending: str, edit: Callable[[Any], None]) -> Callable[[str, bytes], bytes]:
    def change(name: str, content: bytes) -> bytes:
        if not name.endswith(ending):
            return content
        values = json.loads(content)
        edit(values)
        return json.dumps(values).encode()

    return change


def _same(_name: str, content: bytes) -> bytes:
    return content


def _pickled_weight(values: Any) -> None:
    next(iter(values["config"].values()))["use_pickle"] = True


def _evil_operator(values: Any) -> None:
    values["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"


def _evil_variable(values: Any) -> None:
    values["graph_module"]["graph"]["inputs"][0]["as_tensor"]["name"] = "x=__import__('os')"


def _evil_size(mark: Path) -> Callable[[Any], None]:
    def edit(values: Any) -> None:
        text = json.dumps(values)
        found = "Symbol('s77', positive=True, integer=True)"
        assert found in text
        values.clear()
        values.update(json.loads(text.replace(found, f"open('{mark}', 'w')")))

    return edit


def test_an_exported_graph_that_could_run_code_is_not_loaded(graph: Path, tmp_path: Path, mark: Path) -> None:
    def inputs(name: str, content: bytes) -> bytes:
        return _saved(mark) if "sample_inputs" in name else content

    poisoned: list[tuple[Callable[[str, bytes], bytes], dict[str, bytes], str]] = [
        (inputs, {}, "torch.export"),
        (in_record("weights_config.json", _pickled_weight), {}, "are pickles"),
        (_same, {"data/weights/model.pt": _saved(mark)}, r"holds data/weights/model\.pt"),
        (_same, {"data/constants/opaque_obj_0": _pickled(mark)}, "opaque_obj_0"),
        (_same, {"data/aotinductor/model/a.so": b"\x7fELF"}, "aotinductor"),
        (in_record("models/model.json", _evil_operator), {}, "torch.os.system"),
        (in_record("models/model.json", _evil_variable), {}, "__import__"),
        (in_record("models/model.json", _evil_size(mark)), {}, "size"),
    ]
    for number, (change, more, says) in enumerate(poisoned):
        file = rewritten(graph, tmp_path / f"{number}.pt2", change, more)
        with pytest.raises(UserError, match=says):
            PortableModel(None, {}, read_graph(file)).build()
    untouched = rewritten(graph, tmp_path / "same.pt2", _same, {})
    assert PortableModel(None, {}, read_graph(untouched)).build()(torch.rand(3, 1, 12, 12)).shape == (3, 3)
    assert not mark.exists()


# --- secrets


SECRET_URIS = [
    f"https://user:{SECRET}@host:5000/path",
    f"https://user:{SECRET[:5]}/{SECRET}@host/path",
    f"https://host/path?token={SECRET}&region=eu",
    f"postgresql+psycopg://user:{SECRET}@host/mlflow",
    f"s3://KEY:{SECRET}@bucket/data?endpoint_override=host:9&scheme=http",
    f"abfs://account@container/w.safetensors?sig={SECRET}",
]


@pytest.mark.parametrize("uri", SECRET_URIS)
def test_no_error_or_text_file_holds_the_secret_of_a_uri(uri: str, tmp_path: Path) -> None:
    assert SECRET not in masked(uri)
    assert masked(masked(uri)) == masked(uri)
    error = UserError(f"Weights: {uri} cannot be read (no such file: '{uri}').")
    assert SECRET not in f"{error} {error!r} {pickle.loads(pickle.dumps(error))}"
    assert "cannot be read" in str(error)
    write_text(tmp_path / "error.txt", f"Traceback:\n  OSError: {uri}\n")
    assert SECRET not in (tmp_path / "error.txt").read_text()


@pytest.mark.parametrize(
    "plain",
    [
        "sqlite:////home/jo@corp.org/mlflow.db",
        "s3://bucket/a@b",
        "http://127.0.0.1:5000",
        "file:///x",
        "a // b, jo@x.org",
    ],
)
def test_what_holds_no_secret_is_left_as_it_is(plain: str) -> None:
    assert masked(plain) == plain


@pytest.mark.parametrize("uri", SECRET_URIS)
def test_a_run_gets_its_uris_back_from_a_file_that_only_its_owner_reads(uri: str, tmp_path: Path) -> None:
    config = small_config(uri)
    config = replace(config, run=replace(config.run, mlflow_uri=uri))
    folder = RunFolder(tmp_path)
    folder.create(config)
    write_json(folder.path / "run.json", {**folder.read("run.json"), "mlflow": {"uri": uri}}, sealed=True)
    assert {file.name for file in tmp_path.iterdir() if SECRET in file.read_text()} == {SECRETS_FILE}
    assert stat.S_IMODE((tmp_path / SECRETS_FILE).stat().st_mode) == 0o600
    assert folder.config() == config
    assert folder.read("run.json")["mlflow"]["uri"] == uri
    assert read_config(folder.path / "config.yaml").run.mlflow_uri == uri
    (tmp_path / SECRETS_FILE).unlink()
    assert folder.config().run.mlflow_uri == masked(uri)
    assert newest_secret(folder.read("run.json")["mlflow"]["uri"], uri) == uri


def test_a_changed_password_is_used_and_another_server_is_not() -> None:
    known = "http://user:old@host:5000"
    assert newest_secret(known, "http://user:new@host:5000") == "http://user:new@host:5000"
    assert newest_secret(known, "http://other:5000") == known


def test_mlflow_gets_no_secret_as_parameter_or_tag(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    secrets = {f"uri{i}": text for i, text in enumerate(SECRET_URIS)}
    run_id = open_run(uri=uri, experiment="e", run_name="r", params=secrets, tags=secrets, run_id=None, home=tmp_path)
    data = connect(uri).get_run(run_id).data
    assert data.params["uri0"] == data.tags["uri0"] == "https://***@host:5000/path"
    assert SECRET.encode() not in (tmp_path / "mlflow.db").read_bytes()


def test_inputs_that_cannot_be_read_are_refused_without_their_secret(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task", train=130)
    for uri in (f"s3://KEY:{SECRET[:5]}/{SECRET}@bucket/x", f"file:///nowhere/x?token={SECRET}"):
        for flags in (flags_of(uri), flags_of(task, "--model.weights", uri)):
            with pytest.raises(UserError, match=r"\*\*\*") as refused:
                look_at_inputs(flags)
            assert SECRET not in "".join(traceback.format_exception(refused.value, chain=False))


# --- all of it in one real run


@dataclass
class WatchedRun:
    """What was seen of a run whose every URI has a secret."""

    folder: Path
    output: str
    sockets: set[tuple[str, int]]
    ray_logs: Path
    tracking: Path


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedRun]:
    folder = tmp_path_factory.mktemp("watched")
    tracking, ray_logs = folder / "tracking", Path("/tmp") / f"sec-{os.getpid()}"
    tracking.mkdir()
    server = TrackingServer(tracking)
    server.start()
    task = write_task(folder / "task", train=140)
    weights = folder / "weights.safetensors"
    save_weights(build("small_resnet", 3, mean=(0.5,), std=(0.25,)).backbone.state_dict(), weights)
    config = small_config(f"file://{task}?token={SECRET}", epochs=4, global_batch_size=32)
    config = replace(config, model=replace(config.model, weights=f"file://{weights}?token={SECRET}"))
    config = replace(config, run=replace(config.run, mlflow_uri=server.uri.replace("//", f"//user:{SECRET}@")))
    (folder / "config.yaml").write_text(config_text(config))
    command = [sys.executable, "jobs/finetune.py", "--config", str(folder / "config.yaml"), "--run.name", "mine"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DISTRIBUTED_AUTOLORA_HOME": str(folder / "home")}
    environment |= {"RAY_TMPDIR": str(ray_logs)}
    environment.pop("RAY_ADDRESS", None)
    ray_logs.mkdir()
    history = folder / "home" / "runs" / "mine" / "history.json"
    program = subprocess.Popen(
        [*command, "--evaluate", "none"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(lambda: history.is_file() or program.poll() is not None, "epoch 1")
        sockets = listening(descendants(program.pid))
        output, _ = program.communicate(timeout=280)
    finally:
        program.kill()
        server.kill()
    assert program.returncode == 0, output
    yield WatchedRun(history.parent, output, sockets, ray_logs, tracking)
    shutil.rmtree(ray_logs)


def holders(folder: Path) -> set[str]:
    """Returns the files below a folder that hold the secret."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    return {str(file.relative_to(folder)) for file in files if SECRET.encode() in file.read_bytes()}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_with_two_workers_listens_on_loopback_only(watched: WatchedRun) -> None:
    assert len(watched.sockets) > 8
    assert {address for address, _ in watched.sockets} <= LOOPBACK


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_leaves_its_secrets_in_one_private_file_only(watched: WatchedRun) -> None:
    assert "token=***" in (watched.folder / "config.yaml").read_text()
    assert SECRET in read_sealed(watched.folder / "config.yaml")
    assert holders(watched.folder) == {SECRETS_FILE}
    assert stat.S_IMODE((watched.folder / SECRETS_FILE).stat().st_mode) == 0o600
    assert SECRET not in watched.output
    assert not holders(watched.tracking)
    assert not holders(watched.ray_logs)
