"""Who can reach a cluster's ports, as the kernel of this machine tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distributed_autolora.orchestration.cluster_check.findings import Finding

_LISTENING = "0A"


def judge_exposure(auth_mode: str, services: Mapping[str, tuple[str, bool]]) -> Finding:
    """Who can reach the cluster, and whether a token is asked for; told, never a failure.

    Args:
        auth_mode: Ray's, "disabled" or "token".
        services: (address, whether it is reached from other machines) of head and dashboard.
    """
    said = [
        f"{name} at {address} ({'other machines can connect' if is_open else 'this machine only'})"
        for name, (address, is_open) in services.items()
    ]
    figure = f"RAY_AUTH_MODE is {auth_mode}; {'; '.join(said)}"
    if auth_mode == "disabled" and any(is_open for _, is_open in services.values()):
        advice = (
            "whoever reaches these ports can run programs: let a firewall or security group admit the cluster's own "
            "machines only, or set RAY_AUTH_MODE=token everywhere."
        )
        return Finding("WARN", "access", figure, advice)
    return Finding("PASS", "access", figure)


def listens_beyond_loopback(tables: Sequence[str], port: int) -> bool:
    """Tells whether something on this machine accepts connections from others at a TCP port.

    Args:
        tables: the texts of /proc/net/tcp and /proc/net/tcp6.
        port: the port.
    """
    for table in tables:
        for row in table.splitlines()[1:]:
            _, local, _, state, *_ = row.split()
            address, _, own_port = local.rpartition(":")
            if state == _LISTENING and int(own_port, 16) == port and not _is_loopback(address):
                return True
    return False


def _is_loopback(address: str) -> bool:
    """Reads 32-bit words in the machine's (little-endian) order: 127.x.x.x ends in 7F."""
    if len(address) == 8:
        return address.endswith("7F")
    mapped = address.startswith("0000000000000000FFFF0000")
    return address == "00000000000000000000000001000000" or (mapped and address.endswith("7F"))
