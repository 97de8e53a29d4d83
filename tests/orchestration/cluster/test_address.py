"""An address is looked at before Ray tries it for minutes."""

import socket

import pytest
import ray.util
from ray._private import ray_constants

from distributed_autolora.errors import UserError
from distributed_autolora.orchestration.cluster.address import check_address

VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)


def test_an_address_where_nothing_listens_is_refused_by_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(
        UserError, match=rf"^Ray at 127.0.0.1:{port} does not answer \(Connection refused\)\. Check RAY_A"
    ):
        check_address(f"127.0.0.1:{port}")


def has_ipv6_loopback() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6_loopback(), reason="this machine has no IPv6 loopback")
def test_the_brackets_of_an_ipv6_address_are_not_part_of_the_host() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        address = f"[::1]:{server.getsockname()[1]}"
        check_address(address)
    with pytest.raises(UserError, match=r"^Ray at \[::1\]:\d+ does not answer \(Connection refused\)"):
        check_address(address)


def test_a_name_that_no_host_can_have_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^Ray at a{64}\.invalid:6379 does not answer \(.*too long.*\)\. Check RAY_A"):
        check_address(f"{'a' * 64}.invalid:6379")


@pytest.mark.parametrize("listens_on", ["127.0.0.1", "0.0.0.0"])
def test_a_driver_stays_on_loopback_where_the_head_is_reached_there_alone(listens_on: str) -> None:
    only_there = listens_on == "127.0.0.1" and ray.util.get_node_ip_address() != listens_on
    with socket.create_server((listens_on, 0)) as server:
        check_address(f"localhost:{server.getsockname()[1]}")
    assert only_there != ray_constants.ENABLE_RAY_CLUSTER


@pytest.mark.parametrize("address", ["auto", "local", "no address"])
def test_other_forms_are_left_to_ray(address: str) -> None:
    check_address(address)
    assert ray_constants.ENABLE_RAY_CLUSTER


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://host.invalid:10001", "that is Ray Client's address"),
        ("http://127.0.0.1:8265", "that is the job server's address"),
        ("tcp://127.0.0.1:6379", "that is no address of a Ray cluster"),
    ],
)
def test_addresses_of_other_services_are_refused_at_once(address: str, said: str) -> None:
    with pytest.raises(UserError, match=f"{said}.*Give HOST:PORT"):
        check_address(address)
