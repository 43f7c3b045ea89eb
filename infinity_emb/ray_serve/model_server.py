"""Run the server's app, with one model, as a replica of a deployment."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

from ray import serve
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.engine.array import AsyncEngineArray
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.errors import EngineNotReady
from infinity_emb.ray_serve.options import read_server_config
from infinity_emb.server.app import build_app
from infinity_emb.server.middleware.request_id import HEADER
from infinity_emb.server.requests.in_process import Response, post_json
from infinity_emb.types import ModelInfo


class ForwardedRequest(NamedTuple):
    """A request that the router has received; its body is decompressed."""

    method: str
    path: str
    root_path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    client: tuple[str, int] | None
    body: bytes


class ModelApp:
    """The app of one model."""

    def __init__(self, args: EngineArgs, server: Mapping[str, Any]) -> None:
        config = read_server_config(server)
        self.server_app = build_app(
            lambda: AsyncEngineArray.from_args([args]), config, documents_at_start=config.docs
        )
        self.app = drop_request_id_header(self.server_app)

    @property
    def engine(self) -> AsyncEmbeddingEngine:
        """The engine. Raises EngineNotReady before the app has started."""
        array: AsyncEngineArray = self.server_app.state.context.models.array
        return array[0]

    def check_health(self) -> None:
        """Raise EngineNotReady if only another process can help."""
        if self.engine.slot.is_dead:
            name = self.engine.engine_args.served_model_name
            raise EngineNotReady(f"the worker thread of {name} has crashed")


@serve.ingress()
class ModelServer:
    """A replica that Serve sends HTTP requests to; Serve runs the lifespan, which loads the model."""

    def __init__(self, args: EngineArgs, server: Mapping[str, Any]) -> None:
        self._model = ModelApp(args, server)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return what Serve starts and sends requests to."""
        return self._model.app

    def check_health(self) -> None:
        """Raise EngineNotReady if Serve has to start another replica."""
        self._model.check_health()


class ModelReplica:
    """A replica that the router sends requests to."""

    _lifespan: AbstractAsyncContextManager[object] | None = None  # until the model is loaded

    async def __init__(self, args: EngineArgs, server: Mapping[str, Any]) -> None:
        self._model = ModelApp(args, server)
        app = self._model.server_app
        lifespan = app.router.lifespan_context(app)
        await lifespan.__aenter__()
        self._lifespan = lifespan

    async def __del__(self) -> None:
        """Finish accepted requests; Serve awaits it before the process ends."""
        if self._lifespan is not None:
            await self._lifespan.__aexit__(None, None, None)

    def check_health(self) -> None:
        """Raise EngineNotReady if Serve has to start another replica."""
        self._model.check_health()

    async def answer(self, request: ForwardedRequest) -> Response:
        """Serve a request."""
        return await post_json(
            self._model.app,
            request.path,
            request.body,
            method=request.method,
            root_path=request.root_path,
            query_string=request.query,
            headers=request.headers,
            client=request.client,
        )

    async def describe(self) -> ModelInfo:
        """Return what was detected about the model."""
        return self._model.engine.info


def drop_request_id_header(app: ASGIApp) -> ASGIApp:
    """Drop `x-request-id` from responses: Serve adds it, with the id that the app got from Serve."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [each for each in message.get("headers", ()) if each[0] != HEADER]
                message = {**message, "headers": headers}
            await send(message)

        await app(scope, receive, send_without_id)

    return call
