from __future__ import annotations

import ipaddress

import pytest

from infinity_emb.public_addresses import is_public, parse_address


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "93.184.215.14",
        "100.63.255.255",
        "172.32.0.1",
        "2606:2800:21f:cb07::1",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
        "2002:808:808::1",
    ],
)
def test_hosts_of_the_internet_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "192.0.0.192",
        "192.168.1.1",
        "198.18.0.1",
        "203.0.113.5",
        "224.0.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::8.8.8.8",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::127.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::8.8.8.8",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "4000::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_everything_else_is_not(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


def test_only_the_usual_spelling_is_an_address() -> None:
    assert parse_address("127.0.0.1") == ipaddress.IPv4Address("127.0.0.1")
    assert parse_address("::1") == ipaddress.IPv6Address("::1")
    for text in ("127.1", "0x7f.0.0.1", "0177.0.0.1", "2130706433", "127.0.0.1.", "[::1]", "localhost", ""):
        assert parse_address(text) is None
