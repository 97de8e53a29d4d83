"""An output folder with a store of its own, and a server."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from distributed_autolora.orchestration.mlflow_tracking import (
    default_tracking_uri,
)
from distributed_autolora.orchestration.mlflow_tracking.connection import connect
from tests.orchestration.mlflow_tracking.tracking_server import TrackingServer


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def server(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    folder = tmp_path_factory.mktemp("server")
    # A database that is set up already saves its migrations.
    connect(default_tracking_uri(home))
    shutil.copy(home / "mlflow.db", folder / "server.db")
    started = TrackingServer(folder)
    started.start()
    yield started
    started.kill()
