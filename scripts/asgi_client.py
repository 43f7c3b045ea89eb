"""Start, call and stop an ASGI app in this process, with the standard library only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]


class Lifespan:
    """Start the app on entry, and stop it on exit. Raises RuntimeError when it cannot start."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._from_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def __aenter__(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._task = asyncio.ensure_future(self._app(scope, self._to_app.get, self._from_app.put))
        await self._step("startup")

    async def __aexit__(self, *exc_info: object) -> None:
        await self._step("shutdown")
        await self._task

    async def _step(self, name: str) -> None:
        await self._to_app.put({"type": f"lifespan.{name}"})
        message = await self._from_app.get()
        if message["type"] != f"lifespan.{name}.complete":
            raise RuntimeError(f"{name} of the app failed: {message.get('message', '')}")


async def post_json(
    app: AsgiApp, path: str, content: object, *, headers: Sequence[tuple[bytes, bytes]] = ()
) -> tuple[int, bytes]:
    """Send one request and stay connected; return the status and the body of the response.

    headers: names in lower case, besides those of the body.
    """
    body = json.dumps(content).encode()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *headers,
        ],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 7997),
    }
    unread = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not unread:
            await asyncio.Event().wait()
        return unread.pop()

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)
