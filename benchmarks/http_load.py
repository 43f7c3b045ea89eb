"""Load a server on the loopback with the load generator of `infinity_emb bench`.

On a small machine the clients compete with the server for the cores, so their work slows the server down.
"""

from __future__ import annotations

import socket

import numpy as np

from infinity_emb.cli.bench.connections import Target, build_request
from infinity_emb.cli.bench.load import Span, run_closed
from infinity_emb.cli.remote_server import RemoteServer


def find_free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def make_requests(texts: list[str], *, per_request: int, port: int, encoding_format: str) -> list[bytes]:
    """Build HTTP/1.1 requests to /embeddings, ready to send."""
    return [
        make_request(
            "/embeddings",
            {"input": texts[start : start + per_request], "encoding_format": encoding_format},
            port=port,
        )
        for start in range(0, len(texts), per_request)
    ]


def make_request(path: str, body: object, *, port: int) -> bytes:
    """Build an HTTP/1.1 POST of JSON, ready to send."""
    return build_request(RemoteServer(f"http://127.0.0.1:{port}"), path, body)


async def run_load(requests: list[bytes], *, port: int, num_clients: int) -> tuple[float, list[float]]:
    """Send every request once. Returns the seconds for all of them, and for each."""
    results = await run_closed(
        requests, _make_target(port), num_clients=num_clients, span=Span(num_requests=len(requests))
    )
    if failed := {result.outcome for result in results if not result.is_ok}:
        raise RuntimeError(f"the server answered {failed}")
    results.sort(key=lambda result: result.index)
    return max(result.received_s for result in results), [result.latency_s for result in results]


def _make_target(port: int) -> Target:
    return Target("127.0.0.1", port, uses_tls=False)


def median_ms(seconds: list[float]) -> float:
    """Return the median in milliseconds."""
    return float(np.median(seconds)) * 1000
