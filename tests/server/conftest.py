"""A tiny server for every test: the fake engine, reached without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from tests.support.tiny_server import build_debug_app, client_of


@pytest.fixture(autouse=True, scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Calibration files of int8 and uint8 vectors are written here."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("INFINITY_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture
async def client(anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a started server that serves one model, `debug`."""
    async with client_of(build_debug_app()) as client:
        yield client
