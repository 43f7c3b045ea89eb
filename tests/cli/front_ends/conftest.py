"""Servers with several front ends, in processes of their own."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.support.server_process import DEADLINE_S, FAKE, Server

NUM_FRONT_ENDS = 2


class FrontEndServer(Server):
    """A server whose processes a test can look at."""

    def list_processes(self) -> list[psutil.Process]:
        """Return what the server has started, the fork server first."""
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    def list_front_ends(self) -> list[psutil.Process]:
        return [each for each in self.list_processes()[1:] if each.status() != psutil.STATUS_ZOMBIE]

    def kill(self) -> None:
        """End everything that the server has started."""
        others = self.list_processes() if self.process.poll() is None else []
        super().kill()
        for each in others:
            if each.is_running():
                each.send_signal(signal.SIGKILL)


StartFrontEnds = Callable[..., FrontEndServer]


@pytest.fixture
def start() -> Iterator[StartFrontEnds]:
    servers: list[FrontEndServer] = []

    def start(model: str = "debug", *options: str) -> FrontEndServer:
        number = str(NUM_FRONT_ENDS)
        server = FrontEndServer("v2", *FAKE, "--model-id", model, "--api-servers", number, *options)
        servers.append(server)
        server.wait_until_listening()
        return server

    try:
        yield start
    finally:
        for server in servers:
            server.kill()


def wait_until(is_true: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
