"""Serve apps that do less than the server, with its HTTP protocol: what no server of this kind goes below.

bare: an ASGI app that reads the body and sends a response that was made before.
fastapi: an app with a pydantic body that writes the same vector as JSON.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.responses import Response

from infinity_emb.cli.uvicorn_server import UvicornServer
from infinity_emb.config.server_config import ServerConfig
from scripts.asgi_client import AsgiApp

VECTOR = np.full(1024, 46, dtype=np.float32)


class Body(BaseModel):
    """A request."""

    input: str
    model: str | None = None


def make_bare() -> AsgiApp:
    """Make the app that only sends."""
    body = _encode("model")
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        if scope["type"] == "lifespan":
            while message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
                message = await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def make_fastapi() -> AsgiApp:
    """Make the app that parses, checks and encodes."""
    app = FastAPI()

    @app.post("/embeddings")
    async def embeddings(body: Body) -> Response:
        return Response(_encode(body.model), media_type="application/json")

    return app


def _encode(model: str | None) -> bytes:
    data = [{"object": "embedding", "embedding": VECTOR, "index": 0}]
    content = {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": 46}}
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


APPS: dict[str, Callable[[], AsgiApp]] = {"bare": make_bare, "fastapi": make_fastapi}


def serve_app(make_app: Callable[[], AsgiApp]) -> int:
    """Serve until SIGTERM."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]

    def announce() -> None:
        sys.stderr.write(f"listening on http://127.0.0.1:{port}\n")

    async def abort_pending() -> None:
        """Wait for all requests: there are short ones only."""

    UvicornServer(
        make_app(),  # type: ignore[arg-type]  # no part of FastAPI's is used
        ServerConfig(),
        announce=announce,
        abort_pending=abort_pending,
        log_state=lambda: None,
    ).run(sockets=[listening])
    return 0
