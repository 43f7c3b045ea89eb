"""Asks for the API key on every path that is not declared open.

Pure ASGI and before anything reads the body. Paths are closed unless listed, so that a new route cannot be
forgotten; without a key configured the middleware is not installed at all.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from infinity_emb.server.errors import error_response


class ApiKeyMiddleware:
    """401 unless the request brings `Authorization: Bearer <key>` or its path is open; to POST none is."""

    def __init__(self, app: ASGIApp, *, api_key: str, open_paths: Collection[str]) -> None:
        self._app = app
        self._api_key = api_key.encode()
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._is_open(scope) or self._has_key(scope):
            await self._app(scope, receive, send)
            return
        response = error_response(
            401,
            "the API key is missing or wrong; send the header 'Authorization: Bearer <key>'",
            extra={"detail": "Unauthorized"},
            headers={"WWW-Authenticate": "Bearer"},
        )
        await response(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path: str = scope["path"]
        is_reading = scope.get("method") != "POST"  # at `/` a model answers what is posted
        return is_reading and path.removeprefix(scope.get("root_path", "")) in self._open_paths

    def _has_key(self, scope: Scope) -> bool:
        for name, value in scope["headers"]:
            if name == b"authorization":
                scheme, _, given = value.partition(b" ")
                # In constant time, so that the answer's delay tells nothing about the key.
                return scheme.lower() == b"bearer" and secrets.compare_digest(given.strip(), self._api_key)
        return False
