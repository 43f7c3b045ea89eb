"""A server that may open few files, in a separate process."""

from __future__ import annotations

import contextlib
import signal
import socket

import httpx

from tests.support.server_process import COMMAND, DEADLINE_S, FAKE, StartServer

FEW_FILES = ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh", *COMMAND]


def test_probes_are_answered_however_many_connections_are_open(start_server: StartServer) -> None:
    """At the limit nothing was accepted, and a busy server was restarted."""
    server = start_server(*FAKE, command=FEW_FILES)
    warning = server.wait_for_line("needs 4")
    assert "the limit is 64" in warning
    server.url = server.wait_for_line("listening on ").partition("listening on ")[2].partition(",")[0]
    url = httpx.URL(server.url)
    with contextlib.ExitStack() as stack:
        for _ in range(150):
            client = socket.create_connection((url.host, url.port), timeout=DEADLINE_S)
            stack.callback(client.close)
        for _ in range(10):
            assert httpx.get(f"{server.url}/health", timeout=DEADLINE_S).status_code == 200
        refused = server.embed()
        assert refused.status_code == 503
        assert "connections of this server are in use" in refused.json()["error"]["message"]
    while server.embed().status_code == 503:
        assert server.process.poll() is None
    assert server.embed().status_code == 200
    exit_code, rest = server.stop(signal.SIGTERM)
    assert exit_code == 0
    assert "Traceback" not in rest
