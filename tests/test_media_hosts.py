"""The allow-list of hosts, by itself and where images are fetched."""

from __future__ import annotations

import pytest

from infinity_emb import EngineArgs, media_sources
from infinity_emb.errors import StartupError
from infinity_emb.media_hosts import parse_hosts
from infinity_emb.media_sources import MediaFetcher
from tests.test_media_sources import (
    CONTENT,
    PRIVATE,
    PUBLIC,
    Answers,
    catch_requests,
    refusal_of,
    reply,
    run,
    serve,
)

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
    with pytest.raises(StartupError, match="must be host names behind commas"):
        EngineArgs(media_hosts=text)


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
    assert run(fetcher.fetch("data:,abc")) == b"abc"
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
                with pytest.raises(media_sources.BadInput, match="not on the public internet"):
                    await fetcher.fetch(f"http://cat.example:{site.port}/")
                assert len(site.requests) == 1
                assert inside.requests == []

    run(main())
