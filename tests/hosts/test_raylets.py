"""The rig of the two hosts refuses what it cannot run in."""

from pathlib import Path

import pytest

from distributed_autolora.errors import UserError
from tests.hosts.network import Host
from tests.hosts.raylets import Raylets

HOSTS = [Host(name=name, namespace=name, address="10.77.0.1", port=name) for name in ("first", "second")]


def test_a_folder_too_long_for_the_sockets_of_a_raylet_that_starts_again_is_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match="107 bytes: give a shorter folder"):
        Raylets(HOSTS, tmp_path / ("long" * 20), {}, note=print)
