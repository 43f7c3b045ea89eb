"""Decide where the server may connect to: the hosts that the operator allows, and public addresses only.

Pure rules on names and addresses, without sockets.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

NO_HOST = "none"

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # everything assigned to hosts on the internet
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NOT_PUBLIC = (
    # Protocol assignments, which older versions of `ipaddress` know only in part; includes a metadata
    # service.
    ipaddress.IPv4Network("192.0.0.0/24"),
    # A public address which, inside Azure, is a service of the platform on the virtual machine's host.
    ipaddress.IPv4Network("168.63.129.16/32"),
)


def parse_hosts(text: str) -> Callable[[str], bool]:
    """Return a predicate on hosts for the value of the option `media_hosts`.

    text: comma-separated names; `*.example.org` allows every name below example.org. Empty allows every host,
        `none` no host.
    The predicate takes a host in lower case and without a trailing dot.
    """
    patterns = [part.strip().lower().removesuffix(".") for part in text.split(",") if part.strip()]
    if not patterns:
        return lambda _: True
    exact = {pattern for pattern in patterns if not pattern.startswith("*.") and pattern != NO_HOST}
    endings = tuple(pattern[1:] for pattern in patterns if pattern.startswith("*."))
    return lambda host: host in exact or host.endswith(endings)


def is_public(address: Address) -> bool:
    """Return whether an address belongs to a single host on the internet.

    IPv6 addresses that embed an IPv4 address (mapped, 6to4, NAT64) are as public as that one.
    Source: the IANA special-purpose registries, as far as `ipaddress` knows them.
    """
    if isinstance(address, ipaddress.IPv4Address):
        is_special = any(address in network for network in _NOT_PUBLIC)
        return address.is_global and not address.is_multicast and not is_special
    embedded = address.ipv4_mapped or address.sixtofour
    if address in _NAT64:
        embedded = ipaddress.IPv4Address(address.packed[-4:])
    if embedded is not None:
        return is_public(embedded)
    return address in _GLOBAL_UNICAST and address.is_global


def parse_address(text: str) -> Address | None:
    """Parse an IP address in its usual spelling; return None for other text."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
