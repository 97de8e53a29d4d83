"""No secret of a URI is left behind."""

from __future__ import annotations

import json
import pickle
import stat
import traceback
from dataclasses import replace
from pathlib import Path

import pytest

from distributed_autolora.config.yaml_files import read_config
from distributed_autolora.errors import UserError, masked
from distributed_autolora.files.json_files import SECRETS_FILE, read_json, write_json, write_text
from distributed_autolora.orchestration.mlflow_tracking import connect, newest_secret, open_run
from distributed_autolora.orchestration.runs.folder import RunFolder
from tests.security.watching import SECRET, flags_of, look_at_inputs
from tests.training.tasks import small_config, write_task

SECRET_URIS = [
    f"https://user:{SECRET}@host:5000/path",
    f"https://user:{SECRET[:5]}/{SECRET}@host/path",
    f"https://host/path?token={SECRET}&region=eu",
    f"postgresql+psycopg://user:{SECRET}@host/mlflow",
    f"s3://KEY:{SECRET}@bucket/data?endpoint_override=host:9&scheme=http",
    f"abfs://account@container/w.safetensors?sig={SECRET}",
    f"http://user:it's{SECRET}@host:5000",
    f"http://user:{SECRET[:5]}/'{SECRET}@host:5000",
    f'http://user:<a>"{SECRET}"@host:5000',
    f"http://user:back\\slash-ü-{SECRET}@host:5000",
    f'https://host:50/path?token="a^0](0-{SECRET}',
    f"https://host/path?token='{SECRET}",
    f"https://host/path?token=;{SECRET}&region=eu",
    f"https://host/path?region={SECRET[:2]};{SECRET}",
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
    assert folder.config() == config, "the secret of one file must fit the other, however either quotes"
    (tmp_path / SECRETS_FILE).unlink()
    assert folder.config().run.mlflow_uri == masked(uri)
    assert newest_secret(folder.read("run.json")["mlflow"]["uri"], uri) == uri


@pytest.mark.parametrize("quoted", ["two words", "a: b #c", "line\u0085end", "'", '"', "{[,]}", "a\\u00fcb"])
def test_a_secret_comes_back_however_files_quote_it(quoted: str, tmp_path: Path) -> None:
    uri = f"http://user:{quoted}{SECRET}@host:5000"
    values = {"uri": uri, "texts": [f"{quoted} alone", None, 1], uri: {"known": True}}
    write_json(tmp_path / "a.json", values, sealed=True)
    assert SECRET not in (tmp_path / "a.json").read_text()
    assert read_json(tmp_path / "a.json") == values


@pytest.mark.parametrize("first", ['"', "'", ";", '"a^0](0-', "a;b'", "<a>"])
def test_a_command_with_a_query_s_secret_leaves_a_whole_file_and_comes_back(first: str, tmp_path: Path) -> None:
    values = {"command": f"jobs/x.py --uri https://host:50/p?token={first}{SECRET}- --more", "b": 1}
    write_json(tmp_path / "sealed.json", values, sealed=True)
    write_json(tmp_path / "plain.json", values)
    assert read_json(tmp_path / "sealed.json") == values
    for file in ("sealed.json", "plain.json"):
        written = json.loads((tmp_path / file).read_text())
        assert written == {"command": "jobs/x.py --uri https://host:50/p?token=*** --more", "b": 1}


def test_what_closes_a_text_is_no_part_of_its_uri() -> None:
    for before, after in (
        ("'", "'). More"),
        ('{"uri":"', '","b":1}'),
        ("<", ">, more"),
        ('KeyError("', '")'),
        ("", " more"),
    ):
        text = f"read {before}https://host/p?token=***{after}"
        assert masked(text.replace("***", SECRET)) == text


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
