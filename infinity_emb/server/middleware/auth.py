"""Require an API key on every path that is not listed as open, and the admin key below one path.

Keys are checked before the body is read. Every path is protected unless listed, so a new route cannot be left
open by mistake. Without configured keys the middleware is not installed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from itertools import islice

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from infinity_emb.server.error_format import ErrorContext, ErrorFormat, Failure, set_error_context
from infinity_emb.server.middleware.api_keys import ApiKeys
from infinity_emb.server.requests.paths import strip_root_path
from infinity_emb.server.responses.errors import failure_response

_MESSAGE = "the {} key is missing or wrong; send one header 'Authorization: Bearer <key>'"
# Azure's clients may send both headers.
MAX_KEYS = 2


class ApiKeyMiddleware:
    """Respond with 401 unless the request has a valid key or its path is open; no path is open to POST.

    api_keys: None requires no key.
    admin_keys: the only valid ones at and below `admin_path`; None if there is no admin API.
    error_formats: path → error format of its dialect; other paths have the server's own.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_keys: ApiKeys | None,
        open_paths: Collection[str],
        error_formats: Mapping[str, ErrorFormat],
        admin_keys: ApiKeys | None = None,
        admin_path: str = "",
    ) -> None:
        self._app = app
        self._api_keys = api_keys
        self._admin_keys = admin_keys
        self._admin_path = admin_path
        self._open_paths = frozenset(open_paths)
        self._error_formats = error_formats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._is_open(scope) or self._has_key(scope):
            await self._app(scope, receive, send)
            return
        message = _MESSAGE.format("admin" if self._is_admin(scope) else "API")
        set_error_context(scope, ErrorContext(self._error_formats.get(strip_root_path(scope))))
        response = failure_response(
            scope,
            Failure(401, message, HTTPException(401)),
            extra={"detail": "Unauthorized"},
            headers={"WWW-Authenticate": "Bearer"},
        )
        await response(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        # POST / is a request to a model.
        return scope.get("method") != "POST" and strip_root_path(scope) in self._open_paths

    def _is_admin(self, scope: Scope) -> bool:
        if self._admin_keys is None:
            return False
        path = strip_root_path(scope)
        return path == self._admin_path or path.startswith(f"{self._admin_path}/")

    def _has_key(self, scope: Scope) -> bool:
        keys = self._admin_keys if self._is_admin(scope) else self._api_keys
        if keys is None:
            return True
        given = list(islice(_read_keys(scope), MAX_KEYS + 1))
        key = next((key for key in given if key in keys), None) if len(given) <= MAX_KEYS else None
        if key is not None:
            # Identifies the client for fair scheduling; the key itself is not passed on.
            scope.setdefault("state", {})["client"] = hashlib.blake2b(key, digest_size=8).hexdigest()
        return key is not None


def _read_keys(scope: Scope) -> Iterator[bytes]:
    """Yield the keys in `Authorization`, with or without `Bearer`, and in AzureOpenAI's `api-key`."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            yield token.strip() if scheme.lower() == b"bearer" else value.strip()
        elif name == b"api-key":
            yield value.strip()
