from __future__ import annotations

import pytest

from infinity_emb.cli.request_head import check_head

HOST = (b"host", b"test")


def status_of(*headers: tuple[bytes, bytes], version: str = "1.1") -> int | None:
    problem = check_head(version, headers)
    return problem and problem.status


@pytest.mark.parametrize(
    "host",
    [
        *(b"", b"a", b"A.b-c_d", b"test:80", b"test:", b"127.0.0.1:7997", b"[::1]", b"[fe80::1]:80", b" a "),
        *(b"xn--bcher-kva.example", b"a%20b", b"a,b"),
    ],
)
def test_a_host_with_an_optional_port_is_accepted(host: bytes) -> None:
    assert status_of((b"host", host)) is None


@pytest.mark.parametrize(
    "host",
    [
        b"a b",
        b"a/b",
        b"a:b",
        b"a:1:2",
        b"::1",
        b"[::1",
        b"a@b",
        b"a\tb",
        b"http://a",
        b"a#",
        b"a?",
        b"\xc3\xa4",
    ],
)
def test_another_host_is_refused(host: bytes) -> None:
    assert status_of((b"host", host)) == 400


def test_http_1_1_needs_exactly_one_host() -> None:
    assert status_of() == 400
    assert status_of(HOST, HOST) == 400
    assert status_of((b"host", b"a"), (b"host", b"b"), version="1.0") == 400
    assert status_of(version="1.0") is None


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([b"chunked"], None),
        ([b"Chunked "], None),
        ([b", chunked"], None),
        ([b"gzip, chunked"], 501),
        ([b"gzip", b"chunked"], 501),
        ([b"identity, chunked"], 501),
        ([b"chunked, chunked"], 400),
        ([b"chunked", b"chunked"], 400),
        ([b"chunked, gzip"], 400),
        ([b"gzip"], 400),
        ([b"identity"], 400),
        ([b"chunked;a=b"], 400),
        ([b"xchunked"], 400),
        ([b'"chunked"'], 400),
        ([b""], 400),
    ],
)
def test_chunked_is_the_only_transfer_coding(lines: list[bytes], status: int | None) -> None:
    headers = [(b"transfer-encoding", line) for line in lines]
    assert status_of(HOST, *headers) == status
    assert status_of(HOST, *headers, version="1.0") == 400, "HTTP/1.0 has none"


def test_the_header_te_is_another_one() -> None:
    assert status_of(HOST, (b"te", b"gzip, trailers")) is None


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([b"100-continue"], None),
        ([b"100-Continue"], None),
        ([b""], None),
        ([b"100-continue", b"100-continue"], None),
        ([b"200-ok"], 417),
        ([b"100-continue, x=y"], 417),
        ([b"100-continue", b"x"], 417),
        ([b"100 continue"], 417),
    ],
)
def test_100_continue_is_the_only_expectation(lines: list[bytes], status: int | None) -> None:
    headers = [(b"expect", line) for line in lines]
    assert status_of(HOST, *headers) == status
    assert status_of(HOST, *headers, version="1.0") is None, "HTTP/1.0 has none"
