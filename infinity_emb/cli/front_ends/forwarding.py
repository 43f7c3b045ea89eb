"""Forward HTTP requests from a front end to the app of the engine process, message by message.

The engine process calls `receive` and `send` of ASGI over the link, so it waits for a slow client and notices
a disconnect, as in one process.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infinity_emb.cli.front_ends.client import EngineClient, engine_lost
from infinity_emb.cli.front_ends.frames import Array, Frame, Header
from infinity_emb.cli.front_ends.shared_models import LocalModels
from infinity_emb.errors import EngineNotReady
from infinity_emb.scheduling.worker_pool import unfinished
from infinity_emb.server.endpoints import PROBE_PATHS
from infinity_emb.server.error_format import Failure
from infinity_emb.server.requests.body import repeat_messages
from infinity_emb.server.requests.headers import find_header
from infinity_emb.server.requests.paths import strip_root_path
from infinity_emb.server.responses.errors import failure_response
from infinity_emb.server.routes.admin import ADMIN_PATH
from infinity_emb.server.routing import api_prefixes

# Probes are answered with 503 if the engine process does not respond for this long.
PROBE_TIMEOUT_S = 2.0
# Larger bodies are forwarded without a look at the model that they name.
MAX_PEEKED_BYTES = 2**18
_TEXTS = ("method", "path", "root_path", "scheme", "http_version")
_BYTES = ("raw_path", "query_string")


class ForwardingMiddleware:
    """Serve requests to the models of this front end here, and forward all others.

    Pages and administration are requests about the whole server, which the engine process knows.
    """

    def __init__(self, app: ASGIApp, *, client: EngineClient, models: LocalModels, url_prefix: str) -> None:
        self._app = app
        self._link = client.link
        self._forwarder = Forwarder(client)
        self._models = models
        bases = api_prefixes(url_prefix)
        self._forwarded = (
            url_prefix + ADMIN_PATH,
            *(base + path for base in bases for path in ("/files", "/batches")),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["method"] != "POST" or strip_root_path(scope).startswith(self._forwarded):
            await self._forwarder(scope, receive, send)
        else:
            await self._link.wait_until_writable()
            if not self._models.are_all:
                name, receive = await peek_model_name(scope, receive)
                if not self._models.has_name(name):
                    await self._forwarder(scope, receive, send)
                    return
            await self._app(scope, receive, send)


async def peek_model_name(scope: Scope, receive: Receive) -> tuple[object, Receive]:
    """Return the field `model` of a JSON object, and a `receive` for the whole body.

    The name is None if it is not found in a small and plain body.
    """
    if find_header(scope, b"content-encoding") is not None:
        return None, receive
    messages: list[Message] = []
    num_bytes, is_complete = 0, False
    while not is_complete and num_bytes <= MAX_PEEKED_BYTES:
        messages.append(message := await receive())
        num_bytes += len(message.get("body", b""))
        is_complete = not message.get("more_body", False)
    receive = repeat_messages(messages, receive)
    if num_bytes > MAX_PEEKED_BYTES:
        return None, receive
    try:
        fields = orjson.loads(b"".join(message.get("body", b"") for message in messages))
    except orjson.JSONDecodeError:
        return None, receive
    return fields.get("model") if isinstance(fields, dict) else None, receive


# Calls of the app in the engine process, or the error that ends a request.
_Calls: TypeAlias = "asyncio.Queue[Frame | EngineNotReady]"


class Forwarder:
    """Run requests in the app of the engine process."""

    def __init__(self, client: EngineClient) -> None:
        self._link = client.link
        self._numbers = itertools.count(1)
        self._calls: dict[int, _Calls] = {}
        client.receivers |= dict.fromkeys(("receive", "send", "end"), self._take_call)
        client.on_lost_callbacks.append(lambda: self._fail_all(engine_lost))
        client.on_abort_callbacks.append(lambda: self._fail_all(unfinished))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._link.is_lost:
            await _respond(engine_lost(), scope, receive, send)
            return
        number = next(self._numbers)
        calls = self._calls[number] = asyncio.Queue()
        self._link.send({"kind": "request", "id": number, "scope": pack_scope(scope)})
        has_ended = False
        try:
            has_ended = await self._serve(number, calls, scope, receive, send)
        finally:
            del self._calls[number]
            if not has_ended:
                self._link.send({"kind": "abandoned", "id": number})

    async def _serve(self, number: int, calls: _Calls, scope: Scope, receive: Receive, send: Send) -> bool:
        """Make the calls of the engine process; return true once the request has ended there."""
        is_started = False
        receiving: asyncio.Task[None] | None = None
        timeout_s = PROBE_TIMEOUT_S if scope["path"] in PROBE_PATHS else None
        try:
            while (frame := await _wait_for_call(calls, timeout_s)).header["kind"] != "end":
                if frame.header["kind"] == "receive":
                    receiving = asyncio.ensure_future(self._receive(number, receive))
                else:
                    is_started, timeout_s = True, None
                    await send(unpack_message(frame))
                    self._link.send({"kind": "sent", "id": number})
            return True
        except EngineNotReady as exc:
            if not is_started:
                await _respond(exc, scope, receive, send)
            return False
        finally:
            if receiving is not None:
                receiving.cancel()

    async def _receive(self, number: int, receive: Receive) -> None:
        message = await receive()
        await self._link.wait_until_writable()
        header, arrays = pack_message(message)
        self._link.send({"kind": "received", "id": number, **header}, arrays)

    def _take_call(self, frame: Frame) -> None:
        if (calls := self._calls.get(frame.header["id"])) is not None:
            calls.put_nowait(frame)

    def _fail_all(self, make_error: Callable[[], EngineNotReady]) -> None:
        for calls in self._calls.values():
            calls.put_nowait(make_error())


async def _wait_for_call(calls: _Calls, timeout_s: float | None) -> Frame:
    """Return the next call. Raises EngineNotReady."""
    try:
        call = await asyncio.wait_for(calls.get(), timeout_s)
    except asyncio.TimeoutError:
        raise EngineNotReady("the engine process does not respond") from None
    if isinstance(call, EngineNotReady):
        raise call
    return call


async def _respond(error: EngineNotReady, scope: Scope, receive: Receive, send: Send) -> None:
    await failure_response(scope, Failure(503, str(error), error))(scope, receive, send)


def pack_scope(scope: Scope) -> Header:
    """Return an ASGI scope as JSON values."""
    return {
        **{name: scope[name] for name in _TEXTS if name in scope},
        **{name: scope[name].decode("latin-1") for name in _BYTES if name in scope},
        "headers": _pack_headers(scope["headers"]),
        "client": scope.get("client"),
        "server": scope.get("server"),
    }


def unpack_scope(packed: Header) -> Scope:
    """Return an ASGI scope again."""
    return {
        **packed,
        **{name: packed[name].encode("latin-1") for name in _BYTES if name in packed},
        "type": "http",
        "asgi": {"version": "3.0"},
        "headers": _unpack_headers(packed["headers"]),
        "client": packed["client"] and tuple(packed["client"]),
        "server": packed["server"] and tuple(packed["server"]),
        "state": {},
    }


def pack_message(message: Message) -> tuple[Header, list[Array]]:
    """Return the header and the array of an ASGI message."""
    values: dict[str, Any] = {name: value for name, value in message.items() if name != "body"}
    if "headers" in values:
        values["headers"] = _pack_headers(values["headers"])
    body = message.get("body", b"")
    return {"message": values}, [np.frombuffer(body, dtype=np.uint8)] if body else []


def unpack_message(frame: Frame) -> Message:
    """Return an ASGI message again."""
    message: dict[str, Any] = dict(frame.header["message"])
    if "headers" in message:
        message["headers"] = _unpack_headers(message["headers"])
    if frame.arrays:
        message["body"] = frame.arrays[0].tobytes()
    return message


def _pack_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def _unpack_headers(packed: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in packed]
