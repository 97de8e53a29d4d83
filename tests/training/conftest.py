"""A task that no test of training changes."""

import pytest

from tests.training.tasks import write_task


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of 140 training images."""
    return write_task(tmp_path_factory.mktemp("data") / "task", train=140)
