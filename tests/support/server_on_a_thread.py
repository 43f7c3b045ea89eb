"""Run a server of the fake engine on a thread of this process, and send it raw bytes."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from infinity_emb.cli.uvicorn_server import UvicornServer
from infinity_emb.config.server_config import ServerConfig
from tests.support.event_loop import PATIENCE_S

HEAD = b"POST /embeddings HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
BODY = b'{"input": "four"}'
HEALTH = b"GET /health HTTP/1.1\r\nhost: test\r\n\r\n"
REQUEST = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY

StartHere = Callable[..., "ServerOnAThread"]


class ServerOnAThread(UvicornServer):
    """A server of this process, so that a test can look at its connections; without signals, which are of the
    main thread."""

    def __init__(self, app: FastAPI, config: ServerConfig) -> None:
        async def abort_pending() -> None: ...

        super().__init__(
            app, config, announce=lambda: None, abort_pending=abort_pending, log_state=lambda: None
        )
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = self.listening.getsockname()
        self.thread = threading.Thread(target=self.run, kwargs={"sockets": [self.listening]})

    def capture_signals(self) -> Any:
        return contextlib.nullcontext()


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.01)


def connect(server: ServerOnAThread, *first: bytes) -> socket.socket:
    client = socket.create_connection(server.address, timeout=PATIENCE_S)
    for part in first:
        client.sendall(part)
    return client


def read_all(client: socket.socket) -> bytes:
    """Until the server closes."""
    parts = []
    while part := client.recv(2**16):
        parts.append(part)
    return b"".join(parts)


def error_of(answer: bytes, status: int) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in head.lower()
    error = json.loads(body)["error"]
    assert error["code"] == status
    return str(error["message"])


def answers_of(received: bytes) -> list[tuple[int, bytes]]:
    """Return the status and body of each answer."""
    answers = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        assert length is not None, head
        size = int(length[1])
        answers.append((int(head.split()[1]), rest[:size]))
        received = rest[size:]
    return answers


def statuses(received: bytes) -> list[int]:
    return [status for status, _ in answers_of(received)]
