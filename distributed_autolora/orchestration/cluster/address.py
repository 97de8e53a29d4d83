"""What a Ray address leads to, looked at before Ray tries it for minutes."""

from __future__ import annotations

import os
import socket

import ray.util
from ray._private import ray_constants

from distributed_autolora.errors import UserError

_PATIENCE_S = 10.0
_LOOPBACK = ("127.0.0.1", "localhost")


def check_address(address: str) -> None:
    """Refuses an address where nothing listens, and stays on loopback where its cluster listens there alone.

    Args:
        address: HOST:PORT of a cluster's head; any other form is Ray's to judge.

    Raises:
        UserError: when nothing answers there.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")  # of an IPv6 address
    if not host or "/" in host or not port.isdecimal():
        return
    refusal = _refusal(host, int(port))
    if refusal:
        raise UserError(
            f"Ray at {address} does not answer ({refusal}). Check RAY_ADDRESS, and that the cluster's head runs there."
        )
    if host in _LOOPBACK and _refusal(ray.util.get_node_ip_address(), int(port)):
        stay_on_loopback()


def stay_on_loopback() -> None:
    """Keeps Ray from replacing 127.0.0.1 by an address that other machines can reach.

    Ray's processes read the variable; this one imported Ray before.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


def _refusal(host: str, port: int) -> str:
    """Returns why no connection can be made, "" when it can."""
    try:
        socket.create_connection((host, port), timeout=_PATIENCE_S).close()
    except (OSError, UnicodeError) as error:  # a name that no host can have is a UnicodeError
        return (error.strerror if isinstance(error, OSError) else None) or str(error)
    return ""
