"""Checks of a Ray address before Ray tries to connect for minutes."""

import os
import socket

import ray.util

from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.cluster.ray_internals import ray_constants

_CONNECT_S = 10.0
_SERVICES = {
    "ray": "Ray Client's address, for programs that run outside of the cluster: submit the job instead",
    "http": "the job server's address, which `ray job submit --address` takes",
    "https": "the job server's address, which `ray job submit --address` takes",
}
_LOOPBACK = ("127.0.0.1", "localhost")


def check_address(address: str) -> None:
    """Refuses an address where nothing listens, and stays on loopback if its cluster listens only there.

    It checks HOST:PORT of a cluster's head node; "auto" and "local" are left to Ray.

    Raises:
        UserError: when nothing answers there, and for the address of another service than the head node's.
    """
    scheme, separator, _ = address.partition("://")
    if separator:
        what = _SERVICES.get(scheme, "no address of a Ray cluster")
        raise UserError(f"RAY_ADDRESS is {address}: that is {what}. Give HOST:PORT of the head node, or unset it.")
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


def is_open_to_others(address: str) -> bool:
    """Tells whether other machines can connect to a service HOST:PORT of this machine or another."""
    host, _, port = address.rpartition(":")
    if host.strip("[]") not in (*_LOOPBACK, "::1"):
        return True
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only chooses this machine's own address
            return not _refusal(probe.getsockname()[0], int(port))
        except OSError:  # no network
            return False


def _refusal(host: str, port: int) -> str:
    """Returns why no connection can be made, "" when it can."""
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except (OSError, UnicodeError) as error:  # a name that no host can have is a UnicodeError
        return (error.strerror if isinstance(error, OSError) else None) or str(error)
    return ""
