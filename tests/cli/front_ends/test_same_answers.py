"""One process and two front ends get the same requests: their responses are equal.

schemathesis writes the requests from the OpenAPI document. `OPENAPI_TEST_EXAMPLES=1000` asks for more of each
operation.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings

from tests.cli.front_ends.conftest import FrontEndServer
from tests.support.openapi_schema import EXAMPLES, KINDS, SCHEMA, serve_kinds
from tests.support.server_process import DEADLINE_S, Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="front ends are forked"),
]

NUM_EXAMPLES = int(os.environ.get("OPENAPI_TEST_EXAMPLES", "5"))
DTYPES = ("float", "int8", "uint8", "binary", "ubinary", "base64")
# Ids, times and ports.
CHANGING = re.compile(
    r'"(id|created|[a-z]*_at|unix|[a-z_]*duration)": ?("[^"]*"|[0-9.]+)|127\.0\.0\.1:[0-9]+|[0-9a-f]{24,}'
)
CHANGING_HEADER = re.compile("date|length|request-id|time")


class Servers(NamedTuple):
    """One process, and a server with two front ends, which have no files in common."""

    alone: Server
    several: FrontEndServer


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    def start(kind: type[Server], *options: str) -> Any:
        home = str(tmp_path_factory.mktemp("home"))
        return kind("v2", *serve_kinds(*KINDS), *options, INFINITY_HOME=home)

    both = Servers(start(Server), start(FrontEndServer, "--api-servers", "2"))
    try:
        for server in both:
            server.wait_until_listening()
        yield both
    finally:
        for server in both:
            server.kill()


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def describe(response: Any) -> tuple[int, str, str]:
    """Return the status, the headers and the body, without what no two responses share."""
    headers = {name.lower(): str(value) for name, value in response.headers.items()}
    headers = {name: value for name, value in headers.items() if not CHANGING_HEADER.search(name)}
    body = response.content.decode("latin-1")
    return response.status_code, CHANGING.sub("", str(headers)), CHANGING.sub("", body)


# Backwards: what a server does only once, such as calibrating, is then done for other dialects, too.
@pytest.mark.parametrize(("path", "media_type", "body"), EXAMPLES[::-1])
def test_examples_of_every_kind_and_dtype(
    path: str, media_type: str, body: dict[str, Any], servers: Servers, session: requests.Session
) -> None:
    bodies = [{**body, "model": kind} for kind in KINDS]
    bodies += [{**body, "model": KINDS[0], "embedding_types": [dtype]} for dtype in DTYPES]
    bodies += [{**body, "model": KINDS[0], "embedding_dtype": dtype} for dtype in DTYPES]
    for each in bodies:
        expected, got = (
            describe(
                session.post(
                    server.url + path, json=each, headers={"content-type": media_type}, timeout=DEADLINE_S
                )
            )
            for server in servers
        )
        assert got == expected


@SCHEMA.exclude(path_regex="metrics").parametrize()
@settings(max_examples=NUM_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_requests(case: schemathesis.Case[Any], servers: Servers, session: requests.Session) -> None:
    expected, got = (
        describe(case.call(base_url=server.url, session=session, timeout=DEADLINE_S)) for server in servers
    )
    assert got == expected
