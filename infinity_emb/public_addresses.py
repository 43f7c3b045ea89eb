"""Which IP addresses belong to hosts of the internet, and which to this machine or to a network around it.

Pure rules on addresses: knows nothing of names, sockets or HTTP. Whoever connects where a stranger says asks
here first.
"""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # all that is assigned to hosts of the internet
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NOT_PUBLIC_EITHER = (
    # Protocol assignments, of which older versions of `ipaddress` know a part; a cloud's metadata is there.
    ipaddress.IPv4Network("192.0.0.0/24"),
    # A public number, but inside of Azure it is the platform's own service on the virtual machine's host.
    ipaddress.IPv4Network("168.63.129.16/32"),
)


def is_public(address: Address) -> bool:
    """Whether an address is one host of the internet.

    An IPv6 address that stands for an IPv4 address (mapped, 6to4, NAT64) is as public as that one.
    Source: the IANA special-purpose registries, as far as `ipaddress` knows them.
    """
    if isinstance(address, ipaddress.IPv4Address):
        is_special = any(address in network for network in _NOT_PUBLIC_EITHER)
        return address.is_global and not address.is_multicast and not is_special
    embedded = address.ipv4_mapped or address.sixtofour
    if address in _NAT64:
        embedded = ipaddress.IPv4Address(address.packed[-4:])
    if embedded is not None:
        return is_public(embedded)
    return address in _GLOBAL_UNICAST and address.is_global


def parse_address(text: str) -> Address | None:
    """The address that is written there in the usual spelling, or None."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
