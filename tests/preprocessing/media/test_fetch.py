from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infinity_emb.errors import BadInput, ModelNotDeployedError
from infinity_emb.preprocessing.media import fetch as media_sources
from infinity_emb.preprocessing.media.data_uri import parse_data_uri
from infinity_emb.preprocessing.media.fetch import MAX_URL_CHARS, MediaFetcher
from tests.support.event_loop import PATIENCE_S, run

CONTENT = bytes(range(256)) * 4
PUBLIC, PRIVATE = "93.184.215.14", "10.0.0.1"


def refusal_of(source: object, fetcher: MediaFetcher | None = None) -> str:
    """Why a source is refused."""
    fetcher = fetcher or MediaFetcher(resolve=Answers())
    with pytest.raises(BadInput) as caught:
        run(fetcher.fetch(source))
    assert caught.value.position is None
    return caught.value.reason


class Answers:
    """A resolver with prepared answers; each call for a host uses one up, the last one stays."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): each for name, each in answers.items()}
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        if host not in self.answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        remaining = self.answers[host]
        return remaining.pop(0) if len(remaining) > 1 else remaining[0]


@dataclass
class Site:
    """What a server on the loopback saw."""

    port: int
    requests: list[dict[str, str]] = field(default_factory=list)
    """Headers by lower-case name; the request line under ""."""

    server_names: list[str | None] = field(default_factory=list)


def reply(content: bytes = CONTENT, status: str = "200 OK", **headers: object) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    if "content_length" not in headers and "transfer_encoding" not in headers:
        lines.append(f"content-length: {len(content)}")
    return "\r\n".join([*lines, "", ""]).encode() + content


Answer = Callable[[str, asyncio.StreamWriter], Coroutine[object, object, None]]


@contextlib.asynccontextmanager
async def serve(
    answer: bytes | dict[str, bytes] | Answer, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Site]:
    """A server that answers every request, or each path, with prepared bytes, or as a function does."""
    site = Site(0)
    tasks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            site.requests.append({"": first, **headers})
            path = first.split()[1]
            if callable(answer):
                await answer(path, writer)
            else:
                writer.write(answer if isinstance(answer, bytes) else answer[path])
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()

    if tls is not None:
        tls.sni_callback = lambda _, name, __: site.server_names.append(name)
    server = await asyncio.start_server(talk, host, 0, ssl=tls)
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def open_fetcher(**options: object) -> MediaFetcher:
    return MediaFetcher(allow_private_addresses=True, **options)


async def fetch_from(answer: bytes | dict[str, bytes] | Answer, **options: object) -> bytes:
    async with serve(answer) as site:
        return await open_fetcher(**options).fetch(f"http://127.0.0.1:{site.port}/")


def refusal_from(answer: bytes | dict[str, bytes] | Answer, **options: object) -> str:
    with pytest.raises(BadInput) as caught:
        run(fetch_from(answer, **options))
    return caught.value.reason


# Data URIs


@pytest.mark.parametrize(
    "uri",
    [
        "data:image/png;base64,AQID",
        "data:image/png;base64,AQ==",
        "data:image/png;base64,AQ%3D%3D",
        "data:image/png;name=cat.png;charset=x;base64,AQIDBA==",
        "data:;base64,AQID",
    ],
)
def test_content_is_that_of_urllib(uri: str) -> None:
    with urllib.request.urlopen(uri) as response:
        assert parse_data_uri(uri) == response.read()


@pytest.mark.parametrize(
    ("uri", "content"),
    [
        ("DATA:IMAGE/PNG;BASE64,AQID", b"\1\2\3"),
        ("data:image/png;base64,AQ", b"\1"),
        ("data:image/png;base64,AQ\n I\tD\r\n", b"\1\2\3"),
        ("data:image/png;base64,", b""),
        ("data:audio/wav;base64,AQID", b"\1\2\3"),
        ("data:image/png;base64,%2B%2b%2F%2f", base64.b64decode("++//")),
    ],
)
def test_data_uris_are_read_leniently(uri: str, content: bytes) -> None:
    assert parse_data_uri(uri) == content


@pytest.mark.parametrize(
    "uri",
    [
        "data:",
        "data:image/png;base64",
        "data:nonsense,abc",
        "data:a/b/c,abc",
        "data:image/png;base64;name=x,AQID",
        "data:image/png;nonsense,AQID",
        "data:image/png;" + "a=b;" * 1000 + "base64,AQID",
        "date:,abc",
        "",
    ],
)
def test_a_malformed_header_is_refused_with_an_example(uri: str) -> None:
    with pytest.raises(BadInput, match=r"^is not a data URI: '.*'; write data:image/png;base64,<data>$"):
        parse_data_uri(uri)


@pytest.mark.parametrize("data", ["A", "AQI*", "AQ=D", "AQ-_", "äöüß", "AQ%ffI", "\udc80"])
def test_bad_base64_is_refused(data: str) -> None:
    with pytest.raises(BadInput, match="is a data URI with malformed base64"):
        parse_data_uri(f"data:image/png;base64,{data}")


def test_a_message_holds_80_characters_of_a_data_uri_at_most() -> None:
    for uri in ("data:image/png;base64," + "A" * 10_001, "data:nonsense," + "x" * 10_000):
        with pytest.raises(BadInput) as caught:
            parse_data_uri(uri)
        assert len(caught.value.reason) < 250
        assert uri[:70] in caught.value.reason


@given(content=st.binary(max_size=200), data=st.data())
def test_whatever_is_encoded_comes_back(content: bytes, data: st.DataObject) -> None:
    text = base64.b64encode(content).decode()
    assert parse_data_uri(f"data:image/png;base64,{text}") == content
    assert parse_data_uri(f"data:image/png;base64,{quote(text, safe='')}") == content


@pytest.mark.parametrize(
    "uri", ["data:,hello", "data:,", "data:text/plain;charset=utf-8,gr%C3%BC%C3%9Fe", "data:image/png,%00"]
)
def test_data_that_is_not_base64_is_refused_with_an_example(uri: str) -> None:
    with pytest.raises(
        BadInput, match=r"^is a data URI without base64: '.*'; write data:image/png;base64,<data>$"
    ):
        parse_data_uri(uri)


def test_megabytes_of_escapes_do_not_hold_up_the_event_loop() -> None:
    """urllib's own function takes four seconds for this one."""
    uri = "data:;base64," + "%2F" * 10_000_000
    start = time.perf_counter()
    assert len(parse_data_uri(uri)) == 7_500_000
    assert time.perf_counter() - start < 3


@given(text=st.text(max_size=60), prefix=st.sampled_from(["", "data:", "data:image/png;base64,", "http://"]))
@example("http://[::1", "")
@example("http://h/\udc80", "")
@example("\udc80", "http://")
@example("a..b/", "http://")
@example("x" * 64 + ".com/", "http://")
def test_any_text_gives_bytes_or_a_refusal(text: str, prefix: str) -> None:
    with contextlib.suppress(BadInput):
        content = run(MediaFetcher(resolve=Answers()).fetch(prefix + text))
        assert isinstance(content, bytes)


# Which hosts


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1.",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[fe80::1%25eth0]",
        "169.254.169.254",
        "10.0.0.1:8080",
        "127。0。0。1",
        "localhost",
        "localhost.",
        "LOCALHOST",
    ],
)
def test_hosts_that_are_not_public_are_refused(host: str) -> None:
    """Names are asked of the real resolver, which finds these without a network."""
    assert "not on the public internet; send the content as a data URI" in refusal_of(
        f"http://{host}/", MediaFetcher()
    )


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "017700000001",
        "0x7f000001",
        "0x7f.1",
        "127.1",
        "127.0.1",
        "127.0.0.0x1",
        "0177.0.0.1",
        "0X7F.0.0.1",
        "1.0x",
        "127.1.",
        "127.0.0.1..",
        "256.256.256.256",
        "１２７.0.0.1",
        "①②⑦.0.0.1",
        "127%2e0.0.1",
        "%6cocalhost",
        "a b",
        "a..b",
        ".a",
        "a,b",
        "[::1",
        "[127.0.0.1]",
        "",
    ],
)
@pytest.mark.parametrize("fetcher", [MediaFetcher(), open_fetcher()])
def test_odd_spellings_are_refused_before_anybody_resolves_them(host: str, fetcher: MediaFetcher) -> None:
    resolve = Answers(**{"2130706433": [[PUBLIC]]})
    fetcher._resolve = resolve
    assert refusal_of(f"http://{host}/", fetcher).startswith("cannot be fetched from 'http://")
    assert resolve.asked == []


@pytest.mark.parametrize("userinfo", ["user", "user:secret", "8.8.8.8", "a%40b", "a\\"])
def test_a_user_name_is_refused(userinfo: str) -> None:
    assert "user name or password" in refusal_of(f"http://{userinfo}@127.0.0.1/")


@pytest.mark.parametrize("port", ["0", "65536", "99999"])
def test_a_port_that_does_not_exist_is_refused(port: str) -> None:
    assert f"port {port} does not exist" in refusal_of(f"http://cat.example:{port}/")


@pytest.mark.parametrize(
    "source",
    ["file:///etc/passwd", "/etc/passwd", "ftp://h/x", "gopher://h", "//h/x", "cat.png", "", "x" * 99],
)
def test_only_http_and_data_are_known(source: str) -> None:
    assert "; send an http(s) URL or a data URI" in refusal_of(source)


@pytest.mark.parametrize("source", [None, 3, ["http://h/"], {"url": "http://h/"}, bytearray(b"x")])
def test_what_is_neither_text_nor_bytes_is_refused(source: object) -> None:
    assert refusal_of(source) == f"is a {type(source).__name__}; send a data URI, an http(s) URL or bytes"


def test_an_url_has_at_most_2083_characters() -> None:
    url = "http://cat.example/".ljust(MAX_URL_CHARS, "x")
    assert "host is not found" in refusal_of(url)
    reason = refusal_of(url + "x")
    assert "it has 2084 characters, the limit is 2083" in reason
    assert len(reason) < 200


@pytest.mark.parametrize(
    "answers", [[PRIVATE], [PUBLIC, PRIVATE], [PRIVATE, PUBLIC], [PUBLIC, "::1"], ["fe80::1%eth0"], []]
)
def test_one_private_answer_is_enough_to_refuse_a_host(
    answers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = catch_requests(monkeypatch, {})
    reason = refusal_of("http://cat.example/", MediaFetcher(resolve=Answers(cat_example=[answers])))
    assert "not on the public internet" in reason if answers else "has no address" in reason
    assert not any(answer in reason for answer in answers)  # a stranger shall not map the inside
    assert sent == []


# Where the connection goes


def catch_requests(monkeypatch: pytest.MonkeyPatch, redirects: dict[str, str]) -> list[httpx2.Request]:
    """Requests as they reach the network, answered with CONTENT or, by Host header, with a redirect."""
    sent: list[httpx2.Request] = []

    async def handle(_: object, request: httpx2.Request) -> httpx2.Response:
        sent.append(request)
        if (target := redirects.get(request.headers["host"])) is not None:
            return httpx2.Response(302, headers={"location": target})
        return httpx2.Response(200, stream=httpx2.ByteStream(CONTENT))

    monkeypatch.setattr(httpx2.AsyncHTTPTransport, "handle_async_request", handle)
    return sent


@pytest.mark.parametrize(
    ("url", "sent_to", "host", "server_name"),
    [
        ("http://cat.example/a?b=c#d", f"http://{PUBLIC}/a?b=c#d", "cat.example", "cat.example"),
        ("https://Cat.Example.:8443/", f"https://{PUBLIC}:8443/", "cat.example:8443", "cat.example"),
        ("https://cat.example:443/", f"https://{PUBLIC}/", "cat.example", "cat.example"),
        ("http://[2606:2800::1]/", "http://[2606:2800::1]/", "[2606:2800::1]", "2606:2800::1"),
    ],
)
def test_a_request_goes_to_the_judged_address_and_names_the_host(
    url: str, sent_to: str, host: str, server_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resolver lies: from the second question on, the host is on the inside."""
    sent = catch_requests(monkeypatch, {})
    resolve = Answers(cat_example=[[PUBLIC], [PRIVATE]])

    assert run(MediaFetcher(resolve=resolve).fetch(url)) == CONTENT
    (request,) = sent
    assert (str(request.url), request.headers["host"]) == (sent_to, host)
    assert request.extensions["sni_hostname"] == server_name
    assert len(resolve.asked) == (0 if "[" in url else 1)


def test_a_host_that_moves_inside_is_refused_when_it_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = catch_requests(monkeypatch, {"cat.example": "/again"})
    fetcher = MediaFetcher(resolve=Answers(cat_example=[[PUBLIC], [PRIVATE]]))

    assert "not on the public internet" in refusal_of("http://cat.example/", fetcher)
    assert [request.url.host for request in sent] == [PUBLIC]


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1/",
        "//127.0.0.1/",
        "http://dog.example/",
        "http://[::ffff:10.0.0.1]/",
        "http://127.1/",
        "file:///etc/passwd",
        "data:,x",
        "http://user@cat.example/",
        "http://[",
        "http://h/" + "x" * 2083,
    ],
)
def test_each_redirect_is_judged_like_the_first_address(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = catch_requests(monkeypatch, {"cat.example": target})
    fetcher = MediaFetcher(resolve=Answers(cat_example=[[PUBLIC]], dog_example=[[PRIVATE]], h=[[PUBLIC]]))
    refusal_of("http://cat.example/", fetcher)
    assert [request.url.host for request in sent] == [PUBLIC]


def test_the_socket_is_opened_to_the_first_answer_and_no_name_is_resolved_again() -> None:
    """No mock between: `cat.example` does not exist, so a second resolution anywhere would fail."""

    async def main() -> None:
        async with serve(reply()) as site, serve(reply(b"inside"), host="127.0.0.2") as inside:
            resolve = Answers(cat_example=[["127.0.0.1"], ["127.0.0.2"]])
            fetcher = open_fetcher(resolve=resolve)
            assert await fetcher.fetch(f"http://cat.example:{site.port}/a?b") == CONTENT
            assert resolve.asked == [("cat.example", site.port)]
            (request,) = site.requests
            assert (request[""], request["host"]) == ("GET /a?b HTTP/1.1", f"cat.example:{site.port}")
            assert inside.requests == []

    run(main())


def test_a_redirect_between_real_servers_stops_at_the_private_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_sources, "is_public", lambda address: str(address) == "127.0.0.1")

    async def main() -> None:
        async with serve(reply(b"secret"), host="127.0.0.2") as inside:
            target = f"http://127.0.0.2:{inside.port}/"
            async with serve({"/": reply(b"", "302 Found", location=target), "/ok": reply()}) as site:
                assert await MediaFetcher().fetch(f"http://127.0.0.1:{site.port}/ok") == CONTENT
                with pytest.raises(BadInput, match=r"127\.0\.0\.2.*not on the public internet"):
                    await MediaFetcher().fetch(f"http://127.0.0.1:{site.port}/")
                assert inside.requests == []
                assert await open_fetcher().fetch(f"http://127.0.0.1:{site.port}/") == b"secret"

    run(main())


def test_the_next_address_is_tried_where_one_does_not_answer() -> None:
    async def main() -> None:
        async with serve(reply()) as site:
            resolve = Answers(cat_example=[["127.0.0.2", "127.0.0.3", "127.0.0.1"]])
            assert await open_fetcher(resolve=resolve).fetch(f"http://cat.example:{site.port}/") == CONTENT
            assert resolve.asked == [("cat.example", site.port)]

    run(main())


def test_a_port_without_a_server_is_refused() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        reason = refusal_of(f"http://127.0.0.1:{unused.getsockname()[1]}/", open_fetcher())
    assert "ConnectError" in reason


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.2:9")
    assert run(fetch_from(reply())) == CONTENT


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for cat.example and its key, in one file."""
    path = tmp_path_factory.mktemp("tls") / "cat.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=x"
    host = ["-addext", "subjectAltName=DNS:cat.example"]
    files = ["-keyout", str(path), "-out", f"{path}.crt"]
    try:
        subprocess.run([*command.split(), *host, *files], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


@pytest.mark.parametrize(("host", "is_accepted"), [("cat.example", True), ("dog.example", False)])
def test_the_certificate_has_to_be_that_of_the_host_not_of_the_address(
    host: str, is_accepted: bool, certificate: Path
) -> None:
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=f"{certificate}.crt")

    async def main() -> None:
        async with serve(reply(), tls=server_side) as site:
            resolve = Answers(**{host: [["127.0.0.1"]]})
            fetch = open_fetcher(resolve=resolve, ssl_context=trusting).fetch(f"https://{host}:{site.port}/")
            if is_accepted:
                assert await fetch == CONTENT
            else:
                with pytest.raises(BadInput, match=r"certificate verify failed.*Hostname mismatch"):
                    await fetch
            assert site.server_names == [host]

    run(main())


def test_a_certificate_that_nobody_vouches_for_is_refused(certificate: Path) -> None:
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate)

    async def main() -> None:
        async with serve(reply(), tls=server_side) as site:
            fetcher = open_fetcher(resolve=Answers(cat_example=[["127.0.0.1"]]))
            with pytest.raises(BadInput, match="certificate verify failed"):
                await fetcher.fetch(f"https://cat.example:{site.port}/")

    run(main())


# What comes back


@pytest.mark.parametrize("source", [CONTENT, b"", "data:;base64," + base64.b64encode(CONTENT).decode()])
def test_bytes_and_data_uris_need_no_network(source: bytes | str) -> None:
    expected = CONTENT if source else b""
    assert run(MediaFetcher(resolve=Answers()).fetch(source)) == expected


def chunked(*chunks: bytes) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    return reply(body, transfer_encoding="chunked")


def test_a_plain_get_without_cookies_or_encodings_is_sent() -> None:
    async def main() -> None:
        async with serve(reply(set_cookie="a=b")) as site:
            fetcher = open_fetcher()
            for _ in range(2):
                assert await fetcher.fetch(f"http://127.0.0.1:{site.port}/x") == CONTENT
            for request in site.requests:
                assert request.pop("host") == f"127.0.0.1:{site.port}"
                assert request == {
                    "": "GET /x HTTP/1.1",
                    "accept": "*/*",
                    "accept-encoding": "identity",
                    "user-agent": "infinity_emb",
                }

    run(main())


@pytest.mark.parametrize("status", ["301 x", "302 x", "303 x", "307 x", "308 x"])
def test_redirects_are_followed(status: str) -> None:
    hop = reply(b"ignored", status, location="/b")
    assert run(fetch_from({"/": hop, "/b": reply()})) == CONTENT


@pytest.mark.parametrize(("num_redirects", "is_followed"), [(3, True), (4, False)])
def test_three_redirects_are_followed_at_most(num_redirects: int, is_followed: bool) -> None:
    pages = {f"/{n}": reply(b"", "302 x", location=f"/{n + 1}") for n in range(1, num_redirects)}
    pages |= {"/": reply(b"", "302 x", location="/1"), f"/{num_redirects}": reply()}
    if is_followed:
        assert run(fetch_from(pages)) == CONTENT
    else:
        assert "more than 3 redirects; send the final address" in refusal_from(pages)


@pytest.mark.parametrize("status", [201, 204, 206, 300, 302, 304, 401, 404, 500, 503])
def test_only_status_200_counts(status: int) -> None:
    """A redirect that does not say where to is none."""
    answer = reply(b"" if status in (204, 304) else b"text", f"{status} x")
    assert f"the status is {status}; check that it can be opened" in refusal_from(answer)


@pytest.mark.parametrize("answer", [reply(CONTENT), chunked(CONTENT[:500], CONTENT[500:])])
def test_the_size_limit_is_exact(answer: bytes) -> None:
    assert run(fetch_from(answer, max_bytes=1024)) == CONTENT
    assert "it has more than 1023 bytes; send a smaller file" in refusal_from(answer, max_bytes=1023)


@pytest.mark.parametrize("source", [CONTENT, "data:;base64," + base64.b64encode(CONTENT).decode()])
def test_the_size_limit_holds_for_what_is_sent_too(source: bytes | str) -> None:
    assert run(MediaFetcher(max_bytes=1024).fetch(source)) == CONTENT
    assert refusal_of(source, MediaFetcher(max_bytes=1023)) == (
        "has 1024 bytes, the limit is 1023; send a smaller file"
    )


def test_a_size_that_is_declared_too_large_is_not_waited_for() -> None:
    async def declare_and_wait(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"", content_length=2**40))
        await asyncio.sleep(PATIENCE_S)

    assert "it has more than" in refusal_from(declare_and_wait)


def test_a_stream_without_end_is_left_at_the_limit() -> None:
    sent = 0

    async def stream(_: str, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(2**16))
            await writer.drain()
            sent += 2**16

    assert "it has more than 1000000 bytes" in refusal_from(stream, max_bytes=1_000_000)
    assert sent < 50_000_000  # what buffers between two sockets may hold


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", "GZIP"])
def test_compressed_content_is_refused_and_never_unpacked(encoding: str) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    reason = refusal_from(reply(bomb, content_encoding=encoding), max_bytes=100_000)
    assert f"content-encoding is '{encoding}'" in reason


def test_an_identity_encoding_is_none() -> None:
    assert run(fetch_from(reply(content_encoding="Identity"))) == CONTENT


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 1_000_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        reply(CONTENT, content_length=2000),
    ],
)
def test_broken_answers_are_refused_in_few_words(answer: bytes) -> None:
    reason = refusal_from(answer)
    assert "check that it can be opened" in reason
    assert len(reason) < 300


def test_the_time_limit_is_for_the_whole_fetch_however_busy_the_server_looks() -> None:
    async def drip(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.02)

    async def say_nothing(_: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(PATIENCE_S)

    for answer in (drip, say_nothing):
        start = time.perf_counter()
        assert "took longer than 0.3 s; send the content as a data URI" in refusal_from(answer, timeout_s=0.3)
        assert time.perf_counter() - start < 3


def test_a_resolver_that_never_answers_is_bounded_too() -> None:
    async def sleep(host: str, port: int) -> list[str]:
        await asyncio.sleep(PATIENCE_S)
        return [PUBLIC]

    assert "took longer than 0.1 s" in refusal_of(
        "http://cat.example/", MediaFetcher(resolve=sleep, timeout_s=0.1)
    )


def test_a_cancelled_fetch_is_cancelled() -> None:
    async def main() -> None:
        async def say_nothing(_: str, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(PATIENCE_S)

        async with serve(say_nothing) as site:
            task = asyncio.create_task(open_fetcher().fetch(f"http://127.0.0.1:{site.port}/"))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main())


def test_one_fetcher_serves_several_event_loops() -> None:
    fetcher = open_fetcher()

    async def main() -> None:
        async with serve(reply()) as site:
            urls = [f"http://127.0.0.1:{site.port}/{n}" for n in range(20)]
            assert await asyncio.gather(*map(fetcher.fetch, urls)) == [CONTENT] * 20

    run(main())
    run(main())


def test_a_missing_httpx2_is_named_and_needed_for_urls_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    assert run(MediaFetcher().fetch("data:;base64,YWJj")) == b"abc"
    with pytest.raises(ModelNotDeployedError, match=r"pip install 'infinity-emb\[vision\]'"):
        run(MediaFetcher().fetch("http://cat.example/"))
