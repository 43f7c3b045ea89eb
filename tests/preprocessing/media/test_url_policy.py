"""The allow-list of hosts, by itself and where images are fetched."""

from __future__ import annotations

import ipaddress

import pytest

from infinity_emb import EngineArgs
from infinity_emb.errors import BadInput, StartupError
from infinity_emb.preprocessing.media import fetch as media_sources
from infinity_emb.preprocessing.media.fetch import MediaFetcher
from infinity_emb.preprocessing.media.url_policy import is_public, parse_address, parse_hosts
from tests.preprocessing.media.test_fetch import (
    CONTENT,
    PRIVATE,
    PUBLIC,
    Answers,
    catch_requests,
    refusal_of,
    reply,
    serve,
)
from tests.support.event_loop import run

NOT_FETCHED = "this server does not fetch from its host; send the content as a data URI"


@pytest.mark.parametrize(
    ("text", "host", "is_allowed"),
    [
        ("", "cat.example", True),
        (" , ", "cat.example", True),
        ("none", "cat.example", False),
        ("none", "none", False),
        ("cat.example", "cat.example", True),
        ("Cat.Example.", "cat.example", True),
        ("dog.example, cat.example", "cat.example", True),
        ("cat.example", "a.cat.example", False),
        ("cat.example", "cat.example.evil", False),
        ("cat.example", "evilcat.example", False),
        ("*.cat.example", "a.cat.example", True),
        ("*.cat.example", "a.b.cat.example", True),
        ("*.cat.example", "cat.example", False),
        ("*.cat.example", "evilcat.example", False),
        ("*.cat.example", ".cat.example.evil", False),
        ("none,cat.example", "cat.example", True),
        ("93.184.215.14", "93.184.215.14", True),
        ("*.14", "93.184.215.14", True),
        ("xn--ktzchen-0za.example", "xn--ktzchen-0za.example", True),
    ],
)
def test_a_host_is_allowed_by_its_whole_name_or_by_the_end_of_it(
    text: str, host: str, is_allowed: bool
) -> None:
    assert parse_hosts(text)(host) == is_allowed


@pytest.mark.parametrize(
    "text", ["https://cat.example", "cat.example/a", "*", "a b", "*cat.example", "kätzchen.example"]
)
def test_what_is_no_list_of_hosts_stops_the_start(text: str) -> None:
    with pytest.raises(StartupError, match="must be comma-separated host names"):
        EngineArgs(media_hosts=text)


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


def fetcher_for(hosts: str, **answers: list[list[str]]) -> MediaFetcher:
    return MediaFetcher(is_allowed=parse_hosts(hosts), resolve=Answers(**answers))


def test_only_allowed_hosts_are_resolved_and_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = catch_requests(monkeypatch, {})
    fetcher = fetcher_for("cat.example", cat_example=[[PUBLIC]], dog_example=[[PUBLIC]])
    for spelling in ("cat.example", "CAT.example.", "cat.example:8080", "cat。example"):
        assert run(fetcher.fetch(f"http://{spelling}/")) == CONTENT
    for spelling in ("dog.example", "cat.example.dog.example", "93.184.215.14", "[2606:2800::1]"):
        assert NOT_FETCHED in refusal_of(f"http://{spelling}/", fetcher)
    assert "user name or password" in refusal_of("http://cat.example@dog.example/", fetcher)
    assert {host for host, _ in fetcher._resolve.asked} == {"cat.example"}  # type: ignore[attr-defined]
    assert len(sent) == 4


def test_an_international_name_is_compared_as_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    catch_requests(monkeypatch, {})
    name = "xn--ktzchen-5wa.example"
    fetcher = fetcher_for(name, **{name: [[PUBLIC]]})
    assert run(fetcher.fetch("http://kätzchen.example/")) == CONTENT
    assert NOT_FETCHED in refusal_of("http://katzchen.example/", fetcher)


def test_a_redirect_to_another_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = catch_requests(monkeypatch, {"cat.example": "http://dog.example/"})
    fetcher = fetcher_for("cat.example", cat_example=[[PUBLIC]], dog_example=[[PUBLIC]])
    assert NOT_FETCHED in refusal_of("http://cat.example/", fetcher)
    assert [request.url.host for request in sent] == [PUBLIC]


def test_an_allowed_host_has_to_be_public_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = catch_requests(monkeypatch, {})
    fetcher = fetcher_for("cat.example,10.0.0.1", cat_example=[[PRIVATE]])
    for host in ("cat.example", "10.0.0.1"):
        assert "not on the public internet" in refusal_of(f"http://{host}/", fetcher)
    assert sent == []


def test_none_leaves_data_uris_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    fetcher = fetcher_for("none", cat_example=[[PUBLIC]])
    assert run(fetcher.fetch("data:;base64,YWJj")) == b"abc"
    assert run(fetcher.fetch(b"abc")) == b"abc"
    assert NOT_FETCHED in refusal_of("http://cat.example/", fetcher)


# A resolver that changes its mind, between real servers


def test_an_address_that_becomes_private_between_two_redirects_is_never_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DNS re-binding: the name was public when it was first asked for, and is inside the second time."""
    monkeypatch.setattr(media_sources, "is_public", lambda address: str(address) == "127.0.0.1")

    async def main() -> None:
        async with serve(reply(b"secret"), host="127.0.0.2") as inside:
            answers = {"/": reply(b"", "302 Found", location=f"http://cat.example:{inside.port}/")}
            async with serve(answers) as site:
                fetcher = fetcher_for("cat.example", cat_example=[["127.0.0.1"], ["127.0.0.2"]])
                with pytest.raises(BadInput, match="not on the public internet"):
                    await fetcher.fetch(f"http://cat.example:{site.port}/")
                assert len(site.requests) == 1
                assert inside.requests == []

    run(main())
