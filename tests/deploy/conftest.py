"""A server with all kinds of series, and Prometheus that scrapes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.deploy.prometheus import scraping
from tests.support.server_process import DEADLINE_S, FAKE, Server, StartServer


@pytest.fixture
def server(serve: StartServer) -> Server:
    server = serve("v2", *FAKE, "--model-id", "debug?fail_on=poison", "--served-model-name", "debug")
    for texts in (["a", "b"], ["poison"], []):
        httpx.post(f"{server.url}/embeddings", json={"input": texts}, timeout=DEADLINE_S)
    return server


@pytest.fixture
def prometheus(server: Server, tmp_path: Path) -> Iterator[httpx.Client]:
    with scraping(server.url, tmp_path) as client:
        yield client
