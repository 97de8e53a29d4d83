"""A password or token in a URI is refused, and no error message shows one."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from distributed_autolora.cli import parse_training_flags
from distributed_autolora.errors import UserError, masked
from distributed_autolora.files import write_text
from distributed_autolora.orchestration.mlflow_tracking import connect
from tests.security.watching import SECRET, flags_of
from tests.training.tasks import small_config

SECRET_URIS = [
    f"https://user:{SECRET}@host:5000/path",
    f"https://user:{SECRET[:5]}/{SECRET}@host/path",
    f"https://{SECRET}@host/path",
    f"https://host/path?token={SECRET}&region=eu",
    f"https://host/path?region=eu&X-Amz-Signature={SECRET}",
    f"postgresql+psycopg://user:{SECRET}@host/mlflow",
    f"s3://KEY:{SECRET}@bucket/data?endpoint_override=host:9&scheme=http",
    f"abfs://account@container/w.safetensors?sig={SECRET}",
    f"http://user:it's{SECRET}@host:5000",
    f'http://user:<a>"{SECRET}"@host:5000',
    f"postgresql://user:12/{SECRET}@host/db",
    f"s3://KEY:12/{SECRET}@bucket/data",
    f"http://user:/{SECRET}@host:5000",
    f"http://jo:p@ss/{SECRET}#d@127.0.0.1:5999",
    f"https://jo:p@{SECRET}@host/path@x",
    f"https://p@{SECRET}@host:5000/path",
    f"postgresql://jo:p@ss/{SECRET}@host/db",
    f"postgresql://host/db?sslkey=/c/client.key&sslpassword={SECRET}",
    f"mssql+pyodbc://h/db?odbc_connect=DRIVER%3D%7BODBC+Driver+18%7D%3BUID%3Dsa%3BPWD%3D{SECRET}",
    f"mssql+pyodbc://h/db?odbc_connect=PWD%3D{SECRET}%3BDRIVER%3Dx&timeout=3",
    f"s3://bucket/data?endpoint_override=http%3A%2F%2Fuser%3A{SECRET}%40host",
]
PLAIN_URIS = [
    "sqlite:////home/jo@corp.org/mlflow.db",
    "s3://bucket/a@b",
    "s3://bucket/data?endpoint_override=host:9000&scheme=http&region=eu",
    "abfs://container@account.dfs.core.windows.net/data",
    "postgresql://user@host/mlflow?sslmode=require",
    "http://127.0.0.1:5000",
    "http://host:5000/a@b",
    "http://[::1]:5000",
    "hdfs://host:8020/a@b",
    "file:///x",
    "postgresql://user@host/db?sslkey=/c/client.key&passfile=/home/u/.pgpass",
    "mysql://user@host/db?ssl_key=/c/client.key",
    "https://host/path?design=1&keyspace=x&tokenizer=a%20b",
    "mssql+pyodbc://h/db?odbc_connect=DRIVER%3Dx%3BTrusted_Connection%3Dyes",
    "a // b, jo@x.org",
]


@pytest.mark.parametrize("uri", SECRET_URIS)
def test_a_secret_in_a_uri_is_refused_wherever_it_is_given_and_never_repeated(uri: str) -> None:
    config = small_config("folder")
    config = replace(config, run=replace(config.run, mlflow_uri=uri))
    for name, refuse in (
        ("--data.path", lambda: parse_training_flags("", "demo", flags_of(uri))),
        ("--run.mlflow-uri", lambda: parse_training_flags("", "demo", [f"--run.mlflow-uri={uri}"])),
        ("run.mlflow_uri", config.validate),
        ("MLflow", lambda: connect(uri)),
    ):
        with pytest.raises(UserError, match=name) as refused:
            refuse()
        assert SECRET not in str(refused.value)
        assert "MLFLOW_TRACKING_PASSWORD" in str(refused.value)


@pytest.mark.parametrize("uri", SECRET_URIS)
def test_no_error_message_or_text_file_shows_the_secret_of_a_uri(uri: str, tmp_path: Path) -> None:
    assert masked(masked(uri)) == masked(uri)
    error = UserError(f"Weights: {uri} cannot be read (no such file: '{uri}').")
    assert SECRET not in f"{error} {error!r} {pickle.loads(pickle.dumps(error))}"
    write_text(tmp_path / "error.txt", f"Traceback:\n  OSError: {uri}\n")
    assert SECRET not in (tmp_path / "error.txt").read_text()


@pytest.mark.parametrize("uri", PLAIN_URIS)
def test_what_holds_no_secret_is_accepted_as_it_is(uri: str) -> None:
    assert masked(uri) == uri
    assert parse_training_flags("", "demo", flags_of(uri)).experiment.data.path == uri
