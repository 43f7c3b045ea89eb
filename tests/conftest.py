"""What tests of several folders share: servers as processes of their own."""

from __future__ import annotations

import concurrent.futures
import subprocess
from collections.abc import Iterator

import pytest

from infinity_emb import worker
from tests.server_process import CLEAN_ENVIRON, COMMAND, Server, StartServer


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str, command: list[str] = COMMAND, **environ: str) -> Server:
        process = subprocess.Popen(
            [*command, *arguments], env=CLEAN_ENVIRON | environ, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        return Server(process, "", [])

    yield start
    for process in processes:
        with process:
            process.kill()


@pytest.fixture
def serve(start_server: StartServer) -> StartServer:
    """Starts a server and waits until it listens."""

    def start(*arguments: str, **environ: str) -> Server:
        server = start_server(*arguments, **environ)
        line = server.wait_for_line("listening on ")
        server.url = line.partition("listening on ")[2].partition(",")[0]
        return server

    return start


@pytest.fixture
def pool() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    with concurrent.futures.ThreadPoolExecutor() as executor:
        yield executor


@pytest.fixture
def dies_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device thread that dies does not come back."""
    monkeypatch.setattr(worker, "MAX_DEATHS_IN_A_ROW", 0)
