"""What RAY_ADDRESS and --address may say, without a cluster."""

import socket

import pytest

from rayunlearn.cluster.session import ClusterAddress, check_port_open, resolve_address
from rayunlearn.errors import UserError


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("", "local"),
        ("auto", "auto"),
        ("local", "local"),
        ("10.0.0.1:6379", "10.0.0.1:6379"),
        ("ray://head:10001/", "ray://head:10001"),
    ],
)
def test_auto_means_what_rays_variable_says(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", variable)
    assert resolve_address("auto") == ClusterAddress(value, "RAY_ADDRESS")


def test_an_address_that_was_given_goes_before_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    assert resolve_address("local") == ClusterAddress("local", "--address")


def test_a_job_servers_url_is_refused_in_the_name_of_what_the_user_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(UserError, match="RAY_ADDRESS must be auto, local, .*rayunlearn submit"):
        resolve_address("auto")
    with pytest.raises(UserError, match="--address must be auto, local, .*rayunlearn submit"):
        resolve_address("https://head:8265")


@pytest.mark.parametrize("address", ["cluster", "ray://cluster", "host:ten"])
def test_an_address_without_a_port_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="--address must be auto, local"):
        resolve_address(address)


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_an_address_where_nobody_listens_is_refused_at_once(address: str) -> None:
    # bound and not listening: no one else can take the port meanwhile
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found = ClusterAddress(address.format(port=probe.getsockname()[1]), "RAY_ADDRESS")
        with pytest.raises(UserError, match="RAY_ADDRESS must name a Ray cluster that answers"):
            check_port_open(found)
