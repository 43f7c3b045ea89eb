"""Route requests to the deployments of models by the name in their bodies or paths."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, cast

import orjson
from fastapi.exceptions import RequestValidationError
from ray import serve
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.engine.array import AsyncEngineArray
from infinity_emb.engine.engine import AsyncEmbeddingEngine
from infinity_emb.ray_serve.model_server import ForwardedRequest, drop_request_id_header
from infinity_emb.ray_serve.options import read_server_config
from infinity_emb.ray_serve.remote_model import RemoteModel
from infinity_emb.scheduling.fair_threads import FairThreads
from infinity_emb.server.endpoints import API_ENDPOINTS, HEALTH_ENDPOINTS, OPEN_PATHS
from infinity_emb.server.error_format import ErrorContext, set_error_context
from infinity_emb.server.middleware.api_keys import ApiKeys
from infinity_emb.server.middleware.auth import ApiKeyMiddleware
from infinity_emb.server.middleware.request_id import HEADER, RequestIdMiddleware
from infinity_emb.server.middleware.unexpected_errors import UnexpectedErrorMiddleware
from infinity_emb.server.requests import in_process
from infinity_emb.server.requests.body import BodyReader
from infinity_emb.server.requests.context import read_client
from infinity_emb.server.requests.json_body import MIN_THREADED_BYTES, parse_json
from infinity_emb.server.requests.memory import MemoryBudget
from infinity_emb.server.requests.paths import strip_root_path
from infinity_emb.server.responses.errors import HANDLERS
from infinity_emb.server.routes.pages import Pages
from infinity_emb.server.routing import api_prefixes, map_error_formats
from infinity_emb.server.schemas.common import NO_MODEL_NAMES
from infinity_emb.types import Capability

# The longest time that probes and requests without a model's name wait for a replica.
ANSWER_TIMEOUT_S = 5.0
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
# End of a path → the task of its requests; others embed.
_CAPABILITIES: Mapping[str, Capability] = {
    "rerank": "rerank",
    "score": "rerank",
    "ranking": "rerank",
    "classify": "classify",
    "predict": "classify",
}
# They describe the body as sent, which the router has decompressed.
_DROPPED_HEADERS = (b"content-encoding", b"content-length", b"transfer-encoding", HEADER)


@serve.ingress()
class Router:
    """An app that forwards each request to a replica of the model that it names.

    handles: the handle of each model's deployment, in the order of `models`.
    """

    def __init__(
        self, models: Sequence[EngineArgs], handles: Sequence[Any], server: Mapping[str, Any]
    ) -> None:
        config = read_server_config(server)
        self._models = list(map(RemoteModel, models, handles))
        # Only looks up names, for which the options and capabilities suffice.
        self._names = AsyncEngineArray(cast("list[AsyncEmbeddingEngine]", self._models))
        self._names.accepts_any_name = not config.strict_model_names
        self._threads = FairThreads(1, "infinity-router")
        self._bodies = BodyReader(self._threads, max_body_bytes=config.max_body_bytes)
        self._memory = MemoryBudget(config.max_total_body_bytes)
        self._error_formats = map_error_formats(API_ENDPOINTS, config.url_prefix)
        self._prefix = config.url_prefix
        keys = ApiKeys.from_config(config)
        middleware = [Middleware(RequestIdMiddleware), Middleware(UnexpectedErrorMiddleware)]
        if keys is not None:
            paths = [*OPEN_PATHS, *Pages(config).paths]
            middleware.append(
                Middleware(
                    ApiKeyMiddleware, api_keys=keys, open_paths=paths, error_formats=self._error_formats
                )
            )
        self._app = drop_request_id_header(
            Starlette(routes=self._make_routes(), middleware=middleware, exception_handlers=HANDLERS)
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return what Serve starts and sends requests to."""
        return self._app

    def _make_routes(self) -> list[Route]:
        lists = [f"{base}/models" for base in [*api_prefixes(self._prefix), "/openai", "/openai/v1"]]
        return [
            *(Route(each.path, self._check_all, methods=["GET"]) for each in HEALTH_ENDPOINTS),
            *(Route(path, self._list, methods=["GET"]) for path in [*lists, "/api/tags", "/api/ps"]),
            *(Route(f"{path}/{{name:path}}", self._forward, methods=["GET"]) for path in lists),
            Route("/openai/deployments/{name:path}/embeddings", self._forward, methods=["POST"]),
            Route("/{path:path}", self._forward, methods=_METHODS),
        ]

    async def _forward(self, request: Request) -> Response:
        """Forward a request to one model."""
        set_error_context(
            request.scope, ErrorContext(self._error_formats.get(strip_root_path(request.scope)))
        )
        with self._memory.open(read_client(request.scope)) as held:
            body = await self._bodies.read(request, held)
            model = await self._choose(request, body)
            answer = await model.answer(_make_request(request, body))
            held.hold(len(answer.body))
        return _make_response(answer)

    async def _choose(self, request: Request, body: bytes) -> RemoteModel:
        """Return the model that the path or the body names, or the only one for the task.

        Raises UnknownModel, ModelNotNamed and EngineNotReady.
        """
        fields = await self._parse(body)
        name = request.path_params.get("name") or fields.get("model") or fields.get("name")
        if isinstance(name, str) and name not in NO_MODEL_NAMES:
            return cast("RemoteModel", self._names.resolve(name).engine)
        if len(self._models) == 1 or not fields:
            return self._models[0]  # any model's app can describe the API or reject an invalid body
        await asyncio.gather(*(model.load_info(ANSWER_TIMEOUT_S) for model in self._models))
        ending = request.url.path.rstrip("/").rpartition("/")[2]
        return cast("RemoteModel", self._names.default_for(_CAPABILITIES.get(ending, "embed")))

    async def _parse(self, body: bytes) -> dict[str, Any]:
        """Return the fields of a body, none if it is not JSON."""
        try:
            if len(body) < MIN_THREADED_BYTES:
                return parse_json(body) if body else {}
            return await self._threads.run(lambda: parse_json(body), num_chars=len(body))
        except (RequestValidationError, HTTPException):
            return {}

    async def _ask_all(self, request: Request) -> list[in_process.Response]:
        forwarded = _make_request(request, b"")
        return await asyncio.gather(*(model.answer(forwarded, ANSWER_TIMEOUT_S) for model in self._models))

    async def _check_all(self, request: Request) -> Response:
        """Return the first response that is not 200, else the first."""
        answers = await self._ask_all(request)
        return _make_response(next((each for each in answers if each.status != 200), answers[0]))

    async def _list(self, request: Request) -> Response:
        """Join the lists of all models."""
        answers = await self._ask_all(request)
        if any(each.status != 200 for each in answers):
            return _make_response(next(each for each in answers if each.status != 200))
        documents = [orjson.loads(each.body) for each in answers]
        [key] = [name for name, value in documents[0].items() if isinstance(value, list)]
        joined = {**documents[0], key: [entry for document in documents for entry in document[key]]}
        return Response(orjson.dumps(joined), media_type="application/json")


def _make_request(request: Request, body: bytes) -> ForwardedRequest:
    scope = request.scope
    headers = [(name, value) for name, value in scope["headers"] if name not in _DROPPED_HEADERS]
    client = scope.get("client")
    return ForwardedRequest(
        method=scope["method"],
        path=scope["path"],
        root_path=scope.get("root_path", ""),
        query=scope.get("query_string", b""),
        headers=[*headers, (HEADER, request.state.request_id.encode())],
        client=tuple(client) if client else None,
        body=body,
    )


def _make_response(answer: in_process.Response) -> Response:
    response = Response(answer.body, answer.status)
    response.raw_headers = list(answer.headers.items())
    return response
