"""The short way to the routes that take JSON: from the path straight to the handler.

FastAPI's own way there (a list of patterns, exit stacks, two layers that catch exceptions) costs a third of
what the server does for a small request. The routes stand in its router all the same, for the document and
for other methods. Pure ASGI; knows nothing of what a handler does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from infinity_emb.server.errors import handler_of
from infinity_emb.server.json_route import Answer
from infinity_emb.server.paths import path_within


@dataclass(frozen=True, slots=True)
class DirectRoute:
    """`path` is what metrics call it, as they call FastAPI's."""

    path: str
    answer: Answer


class DirectRoutesMiddleware:
    """The innermost one: `routes` by path, for POST; everything else goes on to FastAPI."""

    def __init__(self, app: ASGIApp, *, routes: Iterable[DirectRoute]) -> None:
        self._app = app
        self._routes: Mapping[str, DirectRoute] = {route.path: route for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        route = self._routes.get(path_within(scope)) if is_post else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        request = Request(scope, receive)
        try:
            response = await route.answer(request)
        except Exception as exc:
            handle = handler_of(exc)
            if handle is None:
                raise
            response = await handle(request, exc)
        await response(scope, receive, send)
