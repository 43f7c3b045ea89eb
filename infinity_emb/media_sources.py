"""What a client names → bytes: a data URI, a web address, or the bytes themselves.

The server fetches addresses that strangers choose, so the fetcher connects only to public ones: it resolves a
host once, judges every answer, and connects to exactly the address that it judged. Knows nothing of what the
bytes mean; media.py decodes them. httpx2 is imported on demand.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from infinity_emb.errors import BadInput, ModelNotDeployedError
from infinity_emb.public_addresses import Address, is_public, parse_address

if TYPE_CHECKING:
    import httpx2

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host name and port → its IP addresses, best first. Raises OSError where there is none."""

MAX_URL_CHARS = 2083
MAX_REDIRECTS = 3
MAX_BYTES = 32 * 2**20
_MAX_ADDRESSES_TRIED = 3
_MAX_CHARS_SHOWN = 80
_MAX_HEADER_CHARS = 1024
_REDIRECT_STATUSES = (301, 302, 303, 307, 308)

_HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
# `127.1`, `0x7f.1` and `2130706433` are IPv4 addresses to a resolver; no top-level domain looks like that.
_ENDS_IN_NUMBER = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")


def parse_data_uri(text: str) -> bytes:
    """The content of `data:[mime][;name=value…][;base64],<data>`.

    Data that is not base64 is percent-encoded. base64 may be percent-encoded too, may contain white space and
    may lack its padding. The MIME type has to look like one but is not believed: decoders look at the bytes.

    Raises: BadInput where the header or the base64 is malformed.
    Source: RFC 2397; leniency about base64 as in https://infra.spec.whatwg.org/#forgiving-base64-decode
    """
    header, comma, _ = text[:_MAX_HEADER_CHARS].partition(",")
    data = text[len(header) + 1 :]
    scheme, _, rest = header.partition(":")
    mime, *parameters = rest.split(";")
    is_base64 = bool(parameters) and parameters[-1].strip().lower() == "base64"
    if is_base64:
        parameters.pop()
    is_mime = mime.count("/") == 1 or not mime
    if not (comma and scheme.lower() == "data" and is_mime and all("=" in each for each in parameters)):
        raise BadInput(f"is no data URI: {_shown(text)}; write data:image/png;base64,<data>")
    try:
        content = _decode_percents(data.encode())
        return _decode_base64(content) if is_base64 else content
    except ValueError as exc:
        raise BadInput(f"has a data URI whose data is malformed ({exc}): {_shown(text)}") from exc


async def resolve_by_system(host: str, port: int) -> list[str]:
    """Ask the event loop, which asks the operating system."""
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in infos]


class MediaFetcher:
    """Turns what a client sent into bytes; one serves any number of tasks and event loops.

    max_bytes: size of the content, however it comes. timeout_s: for one whole fetch, redirects included.
    allow_private_addresses: connect to anything; for tests, and for operators who trust their clients.
    is_allowed: which hosts are asked at all, of those that redirects lead to too.
    resolve: asked once per host and redirect. ssl_context: None trusts what the system trusts.
    Proxies and other settings of the environment are not used: a proxy would resolve hosts again.
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
        """The bytes that a source stands for.

        source: a data URI, an http or https URL of up to MAX_URL_CHARS, or the bytes themselves.

        Raises: BadInput where the source is none of these, is too large, does not answer 200 in time, or
        leads to an address that is not public; ModelNotDeployedError for a URL where httpx2 is not installed.
        """
        if isinstance(source, bytes):
            return self._check_size(source)
        if not isinstance(source, str):
            raise BadInput(f"is a {type(source).__name__}; send a data URI, an http(s) URL or bytes")
        if source[:5].lower() == "data:":
            return self._check_size(parse_data_uri(source))
        try:
            return await asyncio.wait_for(self._download(source), self._timeout_s)
        except asyncio.TimeoutError as exc:
            raise _unfetchable(
                source, f"it took longer than {self._timeout_s:g} s; send the content as a data URI"
            ) from exc

    def _check_size(self, content: bytes) -> bytes:
        if len(content) > self._max_bytes:
            raise BadInput(f"has {len(content)} bytes, the limit is {self._max_bytes}; send a smaller file")
        return content

    async def _download(self, text: str) -> bytes:
        url = _parse_url(text)
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._get(url, await self._find_addresses(url))
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise _unfetchable(text, f"more than {MAX_REDIRECTS} redirects; name the last address directly")

    async def _find_addresses(self, url: httpx2.URL) -> list[Address]:
        """What the host resolves to, all of it judged: a resolver may mix public and private answers."""
        host = url.raw_host.decode()
        if not self._is_allowed(host):
            raise _unfetchable(
                url, "this server does not fetch from its host; send the content as a data URI"
            )
        try:
            literal = parse_address(host)
            if literal is not None:
                addresses = [literal]
            else:
                answers = await self._resolve(host, url.port or (443 if url.scheme == "https" else 80))
                addresses = [ipaddress.ip_address(answer) for answer in answers]
        except (OSError, UnicodeError) as exc:
            raise _unfetchable(url, "its host is not found; check the spelling") from exc
        if not addresses:
            raise _unfetchable(url, "its host has no address")
        if not self._allow_private_addresses and not all(map(is_public, addresses)):
            raise _unfetchable(
                url, "its host is not on the public internet; send the content as a data URI instead"
            )
        return list(dict.fromkeys(addresses))

    async def _get(self, url: httpx2.URL, addresses: list[Address]) -> bytes | httpx2.URL:
        """The content of a page, or the address that it redirects to; from the first address that answers."""
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
            reason = f"{type(exc).__name__} {_shown(str(exc))}"
            raise _unfetchable(url, f"{reason}; check that it can be opened") from exc

    async def _get_from(self, url: httpx2.URL, address: Address) -> bytes | httpx2.URL:
        """Ask that address, with the URL's host in the Host header and in TLS.

        Each request has a connection of its own: a pool would know it by the address alone, and would reuse
        what was verified for one host to ask another.
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
                # A silent address leaves time for the next one; the rest is bounded by the whole fetch.
                "timeout": httpx2.Timeout(None, connect=self._timeout_s / _MAX_ADDRESSES_TRIED).as_dict(),
            },
        )
        # The transport instead of a client: it follows nothing, stores no cookie and logs no signed URL.
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
            raise _unfetchable(url, f"the status is {response.status_code}; check that it can be opened")
        encoding = response.headers.get("content-encoding", "identity")
        if encoding.strip().lower() != "identity":  # a few kilobytes of gzip can be gigabytes of zeros
            raise _unfetchable(url, f"it answers with content-encoding {_shown(encoding)}, none was accepted")
        content = bytearray()
        num_bytes = int(response.headers.get("content-length", 0))
        if num_bytes <= self._max_bytes:
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > self._max_bytes:
                    break
        if max(num_bytes, len(content)) > self._max_bytes:
            raise _unfetchable(url, f"it has more than {self._max_bytes} bytes; name a smaller file")
        return bytes(content)

    @cached_property
    def _ssl_context(self) -> ssl.SSLContext:
        import httpx2

        return self._given_ssl_context or httpx2.create_ssl_context(trust_env=False)


def _parse_url(text: str) -> httpx2.URL:
    """A URL whose host is spelt as usual, so that nothing later reads it in another way."""
    if len(text) > MAX_URL_CHARS:
        raise _unfetchable(text, f"it has {len(text)} characters, the limit is {MAX_URL_CHARS}")
    try:
        import httpx2
    except ImportError as exc:
        raise ModelNotDeployedError(
            "cannot be fetched: URLs need httpx2; run pip install 'infinity-emb[vision]', or send a data URI"
        ) from exc
    try:
        url = httpx2.URL(text)
    except (httpx2.InvalidURL, ValueError) as exc:
        raise _unfetchable(text, f"it is no URL ({str(exc)[:_MAX_CHARS_SHOWN]})") from exc
    if url.scheme not in ("http", "https"):
        raise BadInput(f"is {_shown(text)}; send an http(s) URL or a data URI, data:<mime>;base64,<data>")
    if url.userinfo:
        raise _unfetchable(text, "it holds a user name or password; name an address that needs none")
    if url.port is not None and not 0 < url.port < 2**16:
        raise _unfetchable(text, f"port {url.port} does not exist")
    host = url.raw_host.decode().removesuffix(".")
    if parse_address(host) is None and (not _HOST_NAME.fullmatch(host) or _ENDS_IN_NUMBER.fullmatch(host)):
        raise _unfetchable(text, f"{host[:_MAX_CHARS_SHOWN]!r} is neither a host name nor a plain IP address")
    return url.copy_with(host=host)


def _follow(url: httpx2.URL, location: str) -> httpx2.URL:
    import httpx2

    try:
        target = str(url.join(location))
    except (httpx2.InvalidURL, ValueError) as exc:
        raise _unfetchable(url, f"it redirects to {_shown(location)}, which is no URL") from exc
    return _parse_url(target)


_HEX_VALUES = np.full(256, 255, dtype=np.uint8)  # 255: no digit
_HEX_VALUES[list(b"0123456789abcdefABCDEF")] = [*range(16), *range(10, 16)]


def _decode_percents(text: bytes) -> bytes:
    """Replace each %XX by its byte. urllib's own function takes seconds for megabytes of them.

    Source: RFC 3986, section 2.1; a % that is not followed by two hexadecimal digits stays.
    """
    if b"%" not in text:
        return text
    characters = np.frombuffer(text, dtype=np.uint8)  # (N,)
    percents = np.flatnonzero(characters[:-2] == ord("%"))  # (P,)
    high, low = _HEX_VALUES[characters[percents + 1]], _HEX_VALUES[characters[percents + 2]]
    is_escape = (high < 16) & (low < 16)
    escapes = percents[is_escape]  # (E,)
    decoded = characters.copy()
    decoded[escapes] = (high << 4 | low)[is_escape]
    is_kept = np.ones(len(characters), dtype=np.bool_)
    is_kept[escapes + 1] = is_kept[escapes + 2] = False
    return decoded[is_kept].tobytes()


def _decode_base64(content: bytes) -> bytes:
    compact = content.translate(None, b" \t\r\n\f").rstrip(b"=")
    return base64.b64decode(compact + b"=" * (-len(compact) % 4), validate=True)


def _unfetchable(url: httpx2.URL | str, reason: str) -> BadInput:
    return BadInput(f"cannot be fetched from {_shown(str(url))}: {reason}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MAX_CHARS_SHOWN else text[: _MAX_CHARS_SHOWN - 1] + "…")
