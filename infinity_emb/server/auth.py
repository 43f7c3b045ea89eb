"""Asks for an API key on every path that is not declared open, and for the admin key below one path.

Pure ASGI and before anything reads the body. Paths are closed unless listed, so that a new route cannot be
forgotten; without a key configured the middleware is not installed at all. What counts as a key stands in
`api_keys.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from infinity_emb.server.api_keys import ApiKeys
from infinity_emb.server.error_shape import ErrorShape, Failure, note_shape
from infinity_emb.server.errors import failure_response
from infinity_emb.server.paths import path_within

_MESSAGE = "the {} key is missing or wrong; send the header 'Authorization: Bearer <key>'"


class ApiKeyMiddleware:
    """401 unless the request brings a key or its path is open; to POST none is.

    api_keys: None lets everybody in.
    admin_keys: the only ones that count at `admin_path` and below it; None where nothing is there.
    error_shapes: path → how its clients read errors; other paths have the server's own shape.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_keys: ApiKeys | None,
        open_paths: Collection[str],
        error_shapes: Mapping[str, ErrorShape],
        admin_keys: ApiKeys | None = None,
        admin_path: str = "",
    ) -> None:
        self._app = app
        self._api_keys = api_keys
        self._admin_keys = admin_keys
        self._admin_path = admin_path
        self._open_paths = frozenset(open_paths)
        self._error_shapes = error_shapes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._is_open(scope) or self._has_key(scope):
            await self._app(scope, receive, send)
            return
        message = _MESSAGE.format("admin" if self._is_admin(scope) else "API")
        note_shape(Request(scope), self._error_shapes.get(path_within(scope)))
        response = failure_response(
            scope,
            Failure(401, message, HTTPException(401)),
            extra={"detail": "Unauthorized"},
            headers={"WWW-Authenticate": "Bearer"},
        )
        await response(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        # At `/` a model answers what is posted.
        return scope.get("method") != "POST" and path_within(scope) in self._open_paths

    def _is_admin(self, scope: Scope) -> bool:
        if self._admin_keys is None:
            return False
        path = path_within(scope)
        return path == self._admin_path or path.startswith(f"{self._admin_path}/")

    def _has_key(self, scope: Scope) -> bool:
        keys = self._admin_keys if self._is_admin(scope) else self._api_keys
        if keys is None:
            return True
        key = next((given for given in _given_keys(scope) if given in keys), None)
        if key is not None:
            # Whose fair share of a device the request takes; the key itself goes no further.
            scope.setdefault("state", {})["client"] = hashlib.blake2b(key, digest_size=8).hexdigest()
        return key is not None


def _given_keys(scope: Scope) -> Iterator[bytes]:
    """Of `Authorization`, as a bearer token or bare as llama-index sends it, and AzureOpenAI's `api-key`."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            yield token.strip() if scheme.lower() == b"bearer" else value.strip()
        elif name == b"api-key":
            yield value.strip()
