"""Check the head of a request: Host, Expect and Transfer-Encoding.

llhttp accepts heads that servers must refuse by RFC 9110 and RFC 9112, and that a proxy in front may parse
differently.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from infinity_emb.cli.ordered_protocol import Problem

# Source: RFC 3986 section 3.2.2; clients of Unix sockets and old proxies send an empty one.
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]*)?")


def check_head(http_version: str, headers: Sequence[tuple[bytes, bytes]]) -> Problem | None:
    """Return what is wrong with a head, or None.

    headers: with names in lower case.
    """
    hosts: list[bytes] = []
    codings: list[bytes] = []
    expectations: list[bytes] = []
    for name, value in headers:
        if name == b"host":
            hosts.append(value.strip())
        elif name == b"transfer-encoding":
            codings.append(value)
        elif name == b"expect":
            expectations.append(value)
    return (
        _check_host(http_version, hosts)
        or _check_transfer_codings(http_version, codings)
        or _check_expectations(http_version, expectations)
    )


def _check_host(http_version: str, hosts: list[bytes]) -> Problem | None:
    """Check that there is one. Source: RFC 9112 section 3.2."""
    if len(hosts) > 1:
        return Problem(400, f"the request has {len(hosts)} Host headers; send one")
    if not hosts and http_version != "1.0":
        return Problem(400, "the request has no Host header; send one")
    if hosts and not _HOST.fullmatch(hosts[0]):
        return Problem(400, "the Host header is not a host name with an optional port")
    return None


def _check_transfer_codings(http_version: str, values: list[bytes]) -> Problem | None:
    """Refuse codings other than chunked. Source: RFC 9112 sections 6.1 and 6.3; `TE` is another header."""
    if not values:
        return None
    if http_version == "1.0":
        return Problem(
            400,
            "the HTTP version of the request has no Transfer-Encoding; send a Content-Length",
        )
    codings = _split(values)
    if codings == [b"chunked"]:
        return None
    if codings.count(b"chunked") != 1 or codings[-1] != b"chunked":
        return Problem(400, "a Transfer-Encoding must end with chunked, and name it once")
    return Problem(501, "the only Transfer-Encoding of this server is chunked; compress the content instead")


def _check_expectations(http_version: str, values: list[bytes]) -> Problem | None:
    """Refuse others than 100-continue. Source: RFC 9110 section 10.1.1; those of HTTP/1.0 are ignored."""
    if http_version == "1.0" or all(token == b"100-continue" for token in _split(values)):
        return None
    return Problem(417, "the only Expect of this server is 100-continue; leave the header out")


def _split(values: list[bytes]) -> list[bytes]:
    """Split the lines of a list header into its members, in lower case."""
    members = (member.strip().lower() for member in b",".join(values).split(b","))
    return [member for member in members if member]
