"""Fetch media from data URIs, web addresses or bytes.

Clients choose the addresses, so the fetcher connects to public ones only: it resolves a host once, checks
every address it resolves to, and connects to a checked address. httpx2 is imported on demand.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from infinity_emb.errors import BadInput, ModelNotDeployedError
from infinity_emb.preprocessing.media.data_uri import parse_data_uri, shorten
from infinity_emb.preprocessing.media.url_policy import Address, is_public, parse_address

if TYPE_CHECKING:
    import httpx2

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Resolve a host name and a port to IP addresses, best first. Raises OSError when there is none."""

MAX_URL_CHARS = 2083
MAX_REDIRECTS = 3
MAX_BYTES = 32 * 2**20
_MAX_ADDRESSES_TRIED = 3
_MAX_CHARS_SHOWN = 80
_REDIRECT_STATUSES = (301, 302, 303, 307, 308)

_HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
# `127.1`, `0x7f.1` and `2130706433` are IPv4 addresses to a resolver; no top-level domain looks like that.
_ENDS_IN_NUMBER = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")


async def resolve_by_system(host: str, port: int) -> list[str]:
    """Resolve with the operating system, in the event loop's executor."""
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in infos]


class MediaFetcher:
    """Fetch media; may be shared by tasks and event loops.

    max_bytes: maximum size of the content, wherever it comes from.
    timeout_s: for one whole fetch, redirects included.
    allow_private_addresses: connect to any address; for tests.
    is_allowed: whether to connect to a host; also applies to redirects.
    resolve: called once per host and redirect.
    ssl_context: by default, one with the system's trusted certificates.
    Proxies of the environment are not used: a proxy would resolve hosts again.
    """

    def __init__(
        self,
        *,
        max_bytes: int = MAX_BYTES,
        timeout_s: float = 10.0,
        allow_private_addresses: bool = False,
        is_allowed: Callable[[str], bool] = lambda _: True,
        resolve: Resolver = resolve_by_system,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._allow_private_addresses = allow_private_addresses
        self._is_allowed = is_allowed
        self._resolve = resolve
        self._given_ssl_context = ssl_context

    async def fetch(self, source: str | bytes) -> bytes:
        """Return the content of a source.

        source: a base64 data URI, an http or https URL of up to MAX_URL_CHARS, or the content itself.

        Raises: BadInput for another source, content that is too large, a status other than 200, a timeout, or
        an address that is not public; ModelNotDeployedError for a URL when httpx2 is not installed.
        """
        if is_inline(source):
            return self.read_inline(source)
        if not isinstance(source, str):
            raise BadInput(f"is a {type(source).__name__}; send a data URI, an http(s) URL or bytes")
        try:
            return await asyncio.wait_for(self._download(source), self._timeout_s)
        except asyncio.TimeoutError as exc:
            raise _fetch_error(
                source, f"it took longer than {self._timeout_s:g} s; send the content as a data URI"
            ) from exc

    def read_inline(self, source: str | bytes) -> bytes:
        """Return the content of a data URI, or the content itself; for megabytes, call it on a thread."""
        return self._check_size(source if isinstance(source, bytes) else parse_data_uri(source))

    def _check_size(self, content: bytes) -> bytes:
        if len(content) > self._max_bytes:
            raise BadInput(f"has {len(content)} bytes, the limit is {self._max_bytes}; send a smaller file")
        return content

    async def _download(self, text: str) -> bytes:
        url = _parse_url(text)
        for _ in range(MAX_REDIRECTS + 1):
            result = await self._get(url, await self._find_addresses(url))
            if isinstance(result, bytes):
                return result
            url = result
        raise _fetch_error(text, f"more than {MAX_REDIRECTS} redirects; send the final address")

    async def _find_addresses(self, url: httpx2.URL) -> list[Address]:
        """Resolve a host, and check every address: a resolver may mix public and private ones."""
        host = url.raw_host.decode()
        if not self._is_allowed(host):
            raise _fetch_error(
                url, "this server does not fetch from its host; send the content as a data URI"
            )
        try:
            literal = parse_address(host)
            if literal is not None:
                addresses = [literal]
            else:
                resolved = await self._resolve(host, url.port or (443 if url.scheme == "https" else 80))
                addresses = [ipaddress.ip_address(text) for text in resolved]
        except (OSError, UnicodeError) as exc:
            raise _fetch_error(url, "its host is not found; check the spelling") from exc
        if not addresses:
            raise _fetch_error(url, "its host has no address")
        if not self._allow_private_addresses and not all(map(is_public, addresses)):
            raise _fetch_error(
                url, "its host is not on the public internet; send the content as a data URI instead"
            )
        return list(dict.fromkeys(addresses))

    async def _get(self, url: httpx2.URL, addresses: list[Address]) -> bytes | httpx2.URL:
        """Return the content or the URL of a redirect, from the first address that can be connected to."""
        import httpx2

        *others, last = addresses[:_MAX_ADDRESSES_TRIED]
        try:
            for address in others:
                try:
                    return await self._get_from(url, address)
                except (httpx2.ConnectError, httpx2.ConnectTimeout):
                    continue
            return await self._get_from(url, last)
        except httpx2.HTTPError as exc:
            reason = f"{type(exc).__name__} {shorten(str(exc))}"
            raise _fetch_error(url, f"{reason}; check that it can be opened") from exc

    async def _get_from(self, url: httpx2.URL, address: Address) -> bytes | httpx2.URL:
        """Send the request to an address, with the URL's host in the Host header and in TLS.

        Connections are not pooled: a pool identifies them by address, and would reuse one that was verified
        for another host.
        """
        import httpx2

        request = httpx2.Request(
            "GET",
            url.copy_with(host=str(address)),
            headers={
                "host": url.netloc.decode(),
                "accept": "*/*",
                "accept-encoding": "identity",
                "user-agent": "infinity_emb",
            },
            extensions={
                "sni_hostname": url.raw_host.decode(),
                # Leaves time to try the next address; the whole fetch has its own timeout.
                "timeout": httpx2.Timeout(None, connect=self._timeout_s / _MAX_ADDRESSES_TRIED).as_dict(),
            },
        )
        # A transport, not a client: it does not follow redirects, store cookies or log signed URLs.
        async with httpx2.AsyncHTTPTransport(verify=self._ssl_context, trust_env=False) as transport:
            response = await transport.handle_async_request(request)
            try:
                return await self._read(url, response)
            finally:
                await response.aclose()

    async def _read(self, url: httpx2.URL, response: httpx2.Response) -> bytes | httpx2.URL:
        location = response.headers.get("location")
        if response.status_code in _REDIRECT_STATUSES and location is not None:
            return _follow(url, location)
        if response.status_code != 200:
            raise _fetch_error(url, f"the status is {response.status_code}; check that it can be opened")
        encoding = response.headers.get("content-encoding", "identity")
        if encoding.strip().lower() != "identity":  # kilobytes of gzip may be gigabytes
            raise _fetch_error(url, f"the content-encoding is {shorten(encoding)}, but none was accepted")
        content = bytearray()
        num_bytes = int(response.headers.get("content-length", 0))
        if num_bytes <= self._max_bytes:
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > self._max_bytes:
                    break
        if max(num_bytes, len(content)) > self._max_bytes:
            raise _fetch_error(url, f"it has more than {self._max_bytes} bytes; send a smaller file")
        return bytes(content)

    @cached_property
    def _ssl_context(self) -> ssl.SSLContext:
        import httpx2

        return self._given_ssl_context or httpx2.create_ssl_context(trust_env=False)


def is_inline(source: str | bytes) -> bool:
    """Return true for a data URI and for content, which need no connection."""
    return isinstance(source, bytes) or (isinstance(source, str) and source[:5].lower() == "data:")


def _parse_url(text: str) -> httpx2.URL:
    """Parse a URL, and refuse an unusual spelling of its host, which libraries may read differently."""
    if len(text) > MAX_URL_CHARS:
        raise _fetch_error(text, f"it has {len(text)} characters, the limit is {MAX_URL_CHARS}")
    try:
        import httpx2
    except ImportError as exc:
        raise ModelNotDeployedError(
            "cannot be fetched: URLs need httpx2; run pip install 'infinity-emb[vision]', or send a data URI"
        ) from exc
    try:
        url = httpx2.URL(text)
    except (httpx2.InvalidURL, ValueError) as exc:
        raise _fetch_error(text, f"it is not a URL ({str(exc)[:_MAX_CHARS_SHOWN]})") from exc
    if url.scheme not in ("http", "https"):
        raise BadInput(f"is {shorten(text)}; send an http(s) URL or a data URI, data:<mime>;base64,<data>")
    if url.userinfo:
        raise _fetch_error(text, "it contains a user name or password; use an address without")
    if url.port is not None and not 0 < url.port < 2**16:
        raise _fetch_error(text, f"port {url.port} does not exist")
    host = url.raw_host.decode().removesuffix(".")
    if parse_address(host) is None and (not _HOST_NAME.fullmatch(host) or _ENDS_IN_NUMBER.fullmatch(host)):
        raise _fetch_error(text, f"{host[:_MAX_CHARS_SHOWN]!r} is neither a host name nor a plain IP address")
    return url.copy_with(host=host)


def _follow(url: httpx2.URL, location: str) -> httpx2.URL:
    import httpx2

    try:
        target = str(url.join(location))
    except (httpx2.InvalidURL, ValueError) as exc:
        raise _fetch_error(url, f"it redirects to {shorten(location)}, which is not a URL") from exc
    return _parse_url(target)


def _fetch_error(url: httpx2.URL | str, reason: str) -> BadInput:
    return BadInput(f"cannot be fetched from {shorten(str(url))}: {reason}")
