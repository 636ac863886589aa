"""Whose address counts: a client's own words never make it another's."""

from pathlib import Path

import pytest

from proxy.addresses import Addresses, neighbourhood, network, within
from proxy.settings import load_settings
from sidecar.yamlfile import ConfigInvalidError

TRUSTED = ("10.0.0.0/8", "192.0.2.9", "2001:db8:1::/48")


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        pytest.param("198.51.100.1", ["203.0.113.7"], "198.51.100.1", id="who is not trusted speaks for itself"),
        pytest.param("10.0.0.1", [], "10.0.0.1", id="nothing said"),
        pytest.param("10.0.0.1", ["203.0.113.7"], "203.0.113.7", id="one hop"),
        pytest.param("10.0.0.1", ["1.1.1.1, 203.0.113.7"], "203.0.113.7", id="what the client said is left of it"),
        pytest.param("10.0.0.1", ["1.1.1.1", "203.0.113.7"], "203.0.113.7", id="two headers are one list"),
        pytest.param("10.0.0.1", ["203.0.113.7,10.1.2.3, 192.0.2.9"], "203.0.113.7", id="our own hops are skipped"),
        pytest.param("10.0.0.1", ["10.1.2.3"], "10.1.2.3", id="nothing but our own"),
        pytest.param(
            "10.0.0.1", ["203.0.113.7, unknown"], "10.0.0.1", id="a hop that is no address hides what is left"
        ),
        pytest.param("10.0.0.1", ["203.0.113.7, , 10.1.2.3"], "10.1.2.3", id="an empty hop hides it, too"),
        pytest.param("10.0.0.1", ["203.0.113.7:4711"], "203.0.113.7", id="with a port"),
        pytest.param("10.0.0.1", ["[2001:db8::7]:4711"], "2001:db8::7", id="IPv6 with a port"),
        pytest.param("10.0.0.1", ["2001:db8::7"], "2001:db8::7", id="IPv6"),
        pytest.param("2001:db8:1::5", ["203.0.113.7"], "203.0.113.7", id="an IPv6 proxy"),
        pytest.param("::ffff:10.0.0.1", ["203.0.113.7"], "203.0.113.7", id="an IPv4 proxy on an IPv6 socket"),
        pytest.param("10.0.0.1", ["::ffff:203.0.113.7"], "203.0.113.7", id="IPv4 within IPv6"),
    ],
)
def test_w10_the_address_is_the_right_most_hop_that_is_not_trusted(
    peer: str, forwarded: list[str], address: str
) -> None:
    assert Addresses(TRUSTED).of(peer, forwarded) == address


def test_w10_without_trusted_proxies_nobody_speaks_for_another() -> None:
    assert Addresses().of("127.0.0.1", ["203.0.113.7"]) == "127.0.0.1"
    assert not Addresses().trusts("127.0.0.1")


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("local", "local"),
    ],
)
def test_an_ipv6_network_is_one_neighbour(address: str, counted: str) -> None:
    assert neighbourhood(address) == counted


def test_an_address_is_within_networks_or_is_none() -> None:
    networks = [network("192.0.2.0/24"), network("2001:db8::/32")]
    assert within("192.0.2.77", networks)
    assert within("::ffff:192.0.2.77", networks)
    assert within("2001:db8:7::1", networks)
    assert not within("192.0.3.1", networks)
    assert not within("local", networks)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0", "proxy.example", ""])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        network(text)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "proxy.example", "10.0.0.0/33"])
def test_a_proxy_that_is_no_network_is_a_mistake_in_the_settings(tmp_path: Path, text: str) -> None:
    path = tmp_path / "proxy.yaml"
    path.write_text(f"upstreams: [{{name: a, socket: s}}]\nlisten: {{trusted_proxies: ['{text}']}}\n")
    with pytest.raises(ConfigInvalidError, match=r"listen\.trusted_proxies"):
        load_settings(path, {})
