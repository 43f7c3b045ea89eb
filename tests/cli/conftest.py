"""Servers of this process, whose connections a test can look at."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI

from infinity_emb.config.server_config import ServerConfig
from tests.support.event_loop import PATIENCE_S
from tests.support.server_on_a_thread import ServerOnAThread, StartHere, wait_until
from tests.support.tiny_server import build_debug_app, debug_args


@pytest.fixture
def start_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[StartHere]:
    monkeypatch.delattr(signal, "SIGUSR1")
    running: list[ServerOnAThread] = []

    def start(model: str = "debug", app: FastAPI | None = None, **options: Any) -> ServerOnAThread:
        server = ServerOnAThread(app or build_debug_app(debug_args(model)), ServerConfig(**options))
        running.append(server)
        server.thread.start()
        wait_until(lambda: server.started)
        return server

    yield start
    for server in running:
        server.should_exit = True
        server.thread.join(PATIENCE_S)
        assert not server.thread.is_alive()
