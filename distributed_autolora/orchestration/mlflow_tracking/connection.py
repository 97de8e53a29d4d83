"""Reaching an MLflow store: which URIs are understood, and how long to wait for a server."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from distributed_autolora.errors import RunFailedError, UserError, first_line, masked, refuse_secret

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOOPBACK = ("127.0.0.1", "localhost", "::1")
QUICK_S = 5
OPENING_S = 8
LONG_S = 60
_environment = threading.RLock()
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_PLAIN_PROBLEMS = {
    "disk is full": "its disk is full",
    "disk I/O error": "its disk cannot be read or written",
    "readonly database": "its disk is read-only",
}
_SIGNS_OF_ABSENCE = {
    "ProxyError": "the proxy named by http_proxy or https_proxy does not answer",
    "Unable to connect to proxy": "the proxy named by http_proxy or https_proxy does not answer",
    "Connection refused": "connection refused",
    "reset by peer": "connection lost",
    "Connection aborted": "connection lost",
    "timed out": "no answer in time",
    "Failed to resolve": "unknown host name",
    "name resolution": "unknown host name",
    "Name or service not known": "unknown host name",
    "No route to host": "no route to its host",
    "Network is unreachable": "no network",
}


class TrackingError(RunFailedError):
    """MLflow did not accept data; the message says why, and what to do."""


def default_tracking_uri(home: Path) -> str:
    """Returns the URI of the SQLite store in the output folder."""
    return f"sqlite:///{home.absolute() / 'mlflow.db'}"


def connect(uri: str) -> MlflowClient:
    """Returns a client of the store; a new database is set up by one process at a time.

    Raises:
        UserError: for a URI that cannot be used.
    """
    _check_uri(uri)
    set_up_mlflow()
    if urlsplit(uri).hostname in LOOPBACK:
        os.environ |= without_proxy(os.environ)
    from mlflow import MlflowClient

    # It would print the stack trace of every error of a database, a full disk's too; the caller says what it means.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    file = _sqlite_file(uri)
    if file is None:
        return MlflowClient(tracking_uri=uri)
    with Path(f"{file}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return MlflowClient(tracking_uri=uri)


def set_up_mlflow() -> None:
    """Sets what MLflow reads from the environment when it is imported."""
    # MLflow would report usage to its makers, list every migration of a new database, print links into the log of
    # the run, draw progress bars of files, and warn without git.
    for name, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_LOGGING_LEVEL", "WARNING"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
        ("GIT_PYTHON_REFRESH", "quiet"),
    ):
        os.environ.setdefault(name, value)


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables by which a process asks this machine's own servers directly, whatever its proxies."""
    known = environment.get("no_proxy") or environment.get("NO_PROXY")
    hosts = ",".join(dict.fromkeys([*filter(None, (known or "").split(",")), *LOOPBACK]))
    return {"no_proxy": hosts, "NO_PROXY": hosts}


def failures(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """Returns what MLflow raises when a store is away, refuses, or needs a database driver that is not installed."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    # The connection errors of `requests` are subclasses of OSError.
    return (MlflowException, SQLAlchemyError, OSError, ImportError, *more)


@contextmanager
def timeouts(timeout_s: int, retries: int = 0) -> Iterator[None]:
    """Limits how long MLflow waits for a server; it reads these variables at every request.

    One thread of a process at a time: another one's end would restore the variables within this block.
    """
    limits = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries)}
    with _environment:
        before = {name: os.environ.get(name) for name in limits}
        os.environ.update(limits)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


@contextmanager
def requests_to(uri: str, timeout_s: int, retries: int = 0) -> Iterator[None]:
    """Limits how long MLflow waits within the block, and turns its failures into a `TrackingError`.

    Raises:
        TrackingError: when the store is away, refuses, or cannot be used.
    """
    with timeouts(timeout_s, retries):
        try:
            yield
        except failures(UserError) as error:
            problem = problem_of(error).rstrip(".")
            is_away = any(sign in problem for sign in _SIGNS_OF_ABSENCE.values())
            raise TrackingError(
                f"MLflow at {uri} {'is away' if is_away else 'did not take everything'} ({problem}): once "
                f"{'it is back' if is_away else 'that is fixed'}, the same command writes what is missing there."
            ) from error


def is_server(uri: str) -> bool:
    """Tells whether artifacts go through a tracking server, too."""
    return urlsplit(uri).scheme in ("http", "https")


def is_sqlite(uri: str) -> bool:
    """Tells whether the store is a file, which takes one writer at a time."""
    return _sqlite_file(uri) is not None


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:") else None


def _check_uri(uri: str) -> None:
    """Refuses at once what MLflow would only give up on after minutes, or put somewhere unexpected."""
    refuse_secret("The MLflow URI", uri)
    parts = urlsplit(uri)
    file = _sqlite_file(uri)
    if file is not None:
        _check_sqlite(uri, file)
    elif parts.scheme.partition("+")[0] in _DATABASE_PORTS and parts.hostname:
        try:
            port = parts.port or _DATABASE_PORTS[parts.scheme.partition("+")[0]]
            socket.create_connection((parts.hostname, port), timeout=QUICK_S).close()
        except (OSError, ValueError) as error:
            raise UserError(
                f"The MLflow database at {uri} does not answer ({problem_of(error)}): start it, or change --mlflow-uri."
            ) from None
    elif not is_server(uri) or not parts.hostname:
        raise UserError(f'"{uri}" is no MLflow tracking URI: give http://host:port or sqlite:////folder/mlflow.db.')


def _check_sqlite(uri: str, file: Path) -> None:
    if not file.is_absolute():
        raise UserError(f'The MLflow URI "{uri}" is relative: give an absolute path, sqlite:////folder/mlflow.db.')
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a+b") as opened:
            opened.seek(0)
            start = opened.read(16)
    except OSError as error:
        raise UserError(
            f"The MLflow database {file} cannot be written: {error.strerror}. Give yourself the right to, or change "
            "--mlflow-uri."
        ) from None
    if start and not start.startswith(b"SQLite format 3"):
        raise UserError(f"{file} is no SQLite database: move it away, or change --mlflow-uri.")


def truncated(text: str, length: int) -> str:
    """Returns at most `length` characters, the last ones an ellipsis where something was cut off."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def problem_of(error: Exception) -> str:
    """Returns in one line, without passwords, what went wrong."""
    text = masked(str(error))
    for sign, plain in (_PLAIN_PROBLEMS | _SIGNS_OF_ABSENCE).items():
        if sign in text:
            return plain
    return truncated(masked(first_line(error)), 200)
